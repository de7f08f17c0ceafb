//! The store: one method per statement in `sql/`, rows turned into types and types into parameters.
//!
//! The only module that knows SQL. It decides nothing and waits for nothing but PostgreSQL.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex};

use bytes::{BufMut as _, BytesMut};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{GenericClient, Row, RowStream, Statement};

use crate::postgres::Session;

pub mod alerts;
pub mod answers;
pub mod doctor;
pub mod emit;
pub mod full;
pub mod gauges;
pub mod inspect;
pub mod log;
pub mod operate;
pub mod registry;
pub mod retention;
pub mod schedule;
pub mod settle;
pub mod within;

/// One statement of `sql/`: its name and its text.
pub(crate) struct Sql {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

/// The statement in `sql/NAME.sql`.
macro_rules! sql {
    ($name:literal) => {
        $crate::store::Sql { name: $name, text: include_str!(concat!("../../sql/", $name, ".sql")) }
    };
}
pub(crate) use sql;

/// One session with PostgreSQL and the statements it has prepared.
pub struct Store {
    session: Session,
    prepared: Mutex<HashMap<&'static str, Statement>>,
}

/// A statement that failed.
#[derive(Debug, thiserror::Error)]
#[error("the statement `{statement}` failed: {source}")]
pub struct Error {
    /// Its file in `sql/`, without the ending.
    pub statement: &'static str,
    pub source: Cause,
}

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("{}", reason(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Snapshot(#[from] crate::snapshot::ParseError),
    #[error("{0:?} is not a transaction id")]
    TransactionId(String),
    /// The order is what makes a page boundary a position.
    #[error("the page is not in the order of (xid, id)")]
    PageOrder,
}

impl Error {
    /// The SQLSTATE, if PostgreSQL gave one.
    #[must_use]
    pub fn code(&self) -> Option<&SqlState> {
        match &self.source {
            Cause::Postgres(error) => error.code(),
            Cause::Snapshot(_) | Cause::TransactionId(_) | Cause::PageOrder => None,
        }
    }

    /// Whether PostgreSQL answered and refused, in contrast to a connection that broke.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        // Class 57P: the server shuts down or ended the session; 08: connection. Neither is about the statement.
        self.code().is_some_and(|code| !code.code().starts_with("57P") && !code.code().starts_with("08"))
    }

    /// Whether somebody else has locked what the statement needs, for longer than this session waits.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether PostgreSQL refused for something else that passes and that no row is guilty of: no space or memory, a disk that
    /// fails, a cancelled statement, a server that is read-only for a while. The same statement may succeed later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        // 53: resources, 58: the system below, 40: serialization and deadlock, 55: object in use, 57: intervention.
        let passing = |code: &str| ["53", "58", "40", "55", "57"].contains(&&code[..2]) || code == "25006";
        self.is_refusal() && !self.is_locked() && self.code().is_some_and(|code| passing(code.code()))
    }
}

/// Names the statement an error belongs to.
fn failed<C: Into<Cause>>(statement: &'static str) -> impl Fn(C) -> Error {
    move |source| Error { statement, source: source.into() }
}

/// The innermost reason of a PostgreSQL error: its message and SQLSTATE, or what broke the connection.
#[must_use]
pub fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
        for more in [db.detail(), db.hint()].into_iter().flatten() {
            text.push_str("; ");
            text.push_str(more);
        }
        return text;
    }
    match error.source() {
        Some(source) => format!("{error}: {source}").replace(&format!(": {source}: {source}"), &format!(": {source}")),
        None => error.to_string(),
    }
}

/// The settings of the session that reads the log; see [`Store::pin_plans`].
pub const TAIL_SETTINGS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
                                 SET enable_bitmapscan = off; SET enable_sort = off; SET max_parallel_workers_per_gather = 0; SET jit = off";

/// The settings of the session that leads: its joins are a batch against an index, however many rows wait in `outbox.open`; and
/// it waits for nobody's lock, because all handlers' outcomes are written on it.
pub const LEADER_SETTINGS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
                                   SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; \
                                   SET lock_timeout = '100ms'";

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Store {
    /// Takes a session that was just made.
    #[must_use]
    pub fn new(session: Session) -> Self {
        Self { session, prepared: Mutex::default() }
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Ends when the session does, with the reason.
    pub fn closed(&self) -> impl Future<Output = Arc<str>> + Send + use<> {
        self.session.closed()
    }

    async fn prepare(&self, sql: &Sql) -> Result<Statement, Error> {
        let known = |store: &Self| {
            // The map is never left half-written, so a poisoned lock holds good statements.
            store.prepared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(sql.name).cloned()
        };
        if let Some(statement) = known(self) {
            return Ok(statement);
        }
        let statement = self.session.client.prepare(sql.text).await.map_err(failed(sql.name))?;
        let mut prepared = self.prepared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        prepared.insert(sql.name, statement.clone());
        Ok(statement)
    }

    async fn query(&self, sql: Sql, params: Params<'_>) -> Result<Vec<Row>, Error> {
        let statement = self.prepare(&sql).await?;
        self.session.client.query(&statement, params).await.map_err(failed(sql.name))
    }

    async fn query_one(&self, sql: Sql, params: Params<'_>) -> Result<Row, Error> {
        let statement = self.prepare(&sql).await?;
        self.session.client.query_one(&statement, params).await.map_err(failed(sql.name))
    }

    async fn query_opt(&self, sql: Sql, params: Params<'_>) -> Result<Option<Row>, Error> {
        let statement = self.prepare(&sql).await?;
        self.session.client.query_opt(&statement, params).await.map_err(failed(sql.name))
    }

    /// For a result that may be large: one row at a time.
    async fn stream(&self, sql: Sql, params: Params<'_>) -> Result<RowStream, Error> {
        let statement = self.prepare(&sql).await?;
        self.session.client.query_raw(&statement, params.iter().copied()).await.map_err(failed(sql.name))
    }

    async fn execute(&self, sql: Sql, params: Params<'_>) -> Result<u64, Error> {
        let statement = self.prepare(&sql).await?;
        self.session.client.execute(&statement, params).await.map_err(failed(sql.name))
    }

    /// BEGIN, COMMIT, ROLLBACK and session settings: what has no parameters and no result.
    async fn command(&self, name: &'static str, text: &'static str) -> Result<(), Error> {
        self.session.client.batch_execute(text).await.map_err(failed(name))
    }

    /// Opens a transaction on this session; it must be ended by [`Self::commit`] or [`Self::rollback`].
    pub async fn begin(&self) -> Result<(), Error> {
        self.command("begin", "BEGIN").await
    }

    pub async fn commit(&self) -> Result<(), Error> {
        self.command("commit", "COMMIT").await
    }

    pub async fn rollback(&self) -> Result<(), Error> {
        self.command("rollback", "ROLLBACK").await
    }

    /// The plan of the tail must not change with what the tables happened to hold when it was first planned: a plan
    /// cached while they were empty read them sequentially for minutes (235 ms instead of 2.5).
    pub async fn pin_plans(&self) -> Result<(), Error> {
        self.command("pin_plans", TAIL_SETTINGS).await
    }

    /// The same for the session that leads; see [`LEADER_SETTINGS`].
    pub async fn pin_leader_plans(&self) -> Result<(), Error> {
        self.command("pin_leader_plans", LEADER_SETTINGS).await
    }

    /// Hears the bell from now on.
    pub async fn listen(&self) -> Result<(), Error> {
        self.command("listen", "LISTEN outbox").await
    }

    /// Rings the bell.
    pub async fn ring(&self) -> Result<(), Error> {
        self.command("ring", "NOTIFY outbox").await
    }
}

/// JSON as text, to and from `jsonb` without parsing it.
#[derive(Debug, Clone)]
pub(crate) struct RawJson(pub(crate) String);

impl<'a> FromSql<'a> for RawJson {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        // jsonb on the wire: a version byte, always 1, then the text.
        match raw.split_first() {
            Some((1, text)) => Ok(Self(String::from_utf8(text.to_vec())?)),
            _ => Err("jsonb of an unknown version".into()),
        }
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSONB
    }
}

impl ToSql for RawJson {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_u8(1);
        out.put_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSONB
    }

    to_sql_checked!();
}

/// Runs one statement of `sql/` on any client; for transactions, which [`Store`] does not hold.
pub(crate) async fn execute_on(client: &impl GenericClient, sql: Sql, params: Params<'_>) -> Result<u64, Error> {
    client.execute(sql.text, params).await.map_err(failed(sql.name))
}

/// The same for one with a result.
pub(crate) async fn query_on(client: &impl GenericClient, sql: Sql, params: Params<'_>) -> Result<Vec<Row>, Error> {
    client.query(sql.text, params).await.map_err(failed(sql.name))
}
