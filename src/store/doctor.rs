//! What `outboxd doctor` asks.

use std::time::Duration;

use jiff::Timestamp;

use super::log::seconds;
use super::{Error, Store, sql};

/// The server.
#[derive(Debug)]
pub struct Server {
    pub now: Timestamp,
    pub standby: bool,
    pub read_only: bool,
    /// How full the queue of notifications is, from 0 to 1.
    pub queue: f64,
    pub clients: i64,
    pub clients_max: i64,
    /// Whose sessions run no triggers, because `session_replication_role` is set for them.
    pub replica: Option<String>,
}

/// Who keeps PostgreSQL from cleaning up.
#[derive(Debug)]
pub struct Holder {
    /// `session`, `prepared transaction` or `replication slot`.
    pub kind: String,
    pub name: String,
    pub who: String,
    pub age: Option<Duration>,
    pub transactions: Option<i64>,
}

/// An attempt that has run for long.
#[derive(Debug)]
pub struct Lasting {
    pub event: i64,
    pub handler: String,
    pub kind: String,
    pub attempt: i32,
    pub age: Duration,
    /// Since it said something; `None`: it never has.
    pub silent: Option<Duration>,
    /// Nobody is there to end it.
    pub overdue: bool,
}

/// The dead deliveries of a handler, and the newest of them.
#[derive(Debug)]
pub struct DeadLetters {
    pub handler: String,
    /// Those of its key wait behind a dead one.
    pub blocks: bool,
    pub dead: i64,
    pub event: i64,
    pub error: String,
    pub age: Duration,
}

/// How the log stands.
#[derive(Debug)]
pub struct LogState {
    /// Ids that fit into the partitions which are made ahead; `None`: there is none.
    pub ids_left: Option<i64>,
    pub default_used: bool,
    /// Of `outbox.open`.
    pub dead_rows: i64,
    pub live_rows: i64,
}

/// A handler as the database knows it.
#[derive(Debug)]
pub struct Known {
    pub name: String,
    pub topics: Vec<String>,
    pub kind: String,
    pub absent: bool,
}

impl Store {
    pub async fn server(&self) -> Result<Server, Error> {
        let row = self.query_one(sql!("doctor_server"), &[]).await?;
        Ok(Server {
            now: row.get("now"),
            standby: row.get("standby"),
            read_only: row.get("read_only"),
            queue: row.get("queue"),
            clients: row.get("clients"),
            clients_max: row.get("clients_max"),
            replica: row.get("replica"),
        })
    }

    /// The triggers of the log, and whether each is enabled, as `pg_trigger` says it; `None`: it is not there.
    pub async fn triggers(&self) -> Result<Vec<(String, Option<String>)>, Error> {
        let rows = self.query(sql!("doctor_triggers"), &[]).await?;
        Ok(rows.iter().map(|row| (row.get("name"), row.get("enabled"))).collect())
    }

    /// Those that last for longer than this.
    pub async fn holders(&self, usual: Duration) -> Result<Vec<Holder>, Error> {
        let rows = self.query(sql!("doctor_holders"), &[&usual.as_secs_f64()]).await?;
        let holder = |row: &tokio_postgres::Row| Holder {
            kind: row.get("kind"),
            name: row.get("name"),
            who: row.get("who"),
            age: row.get::<_, Option<f64>>("seconds").map(seconds),
            transactions: row.get("transactions"),
        };
        Ok(rows.iter().map(holder).collect())
    }

    /// Those that last for longer than this.
    pub async fn lasting(&self, usual: Duration) -> Result<Vec<Lasting>, Error> {
        let rows = self.query(sql!("doctor_lasting"), &[&usual.as_secs_f64()]).await?;
        let lasting = |row: &tokio_postgres::Row| Lasting {
            event: row.get("event_id"),
            handler: row.get("handler"),
            kind: row.get("kind"),
            attempt: row.get("attempt"),
            age: seconds(row.get("seconds")),
            silent: row.get::<_, Option<f64>>("silent").map(seconds),
            overdue: row.get("overdue"),
        };
        Ok(rows.iter().map(lasting).collect())
    }

    pub async fn dead_letters(&self) -> Result<Vec<DeadLetters>, Error> {
        let rows = self.query(sql!("doctor_dead"), &[]).await?;
        let dead = |row: &tokio_postgres::Row| DeadLetters {
            handler: row.get("handler"),
            blocks: row.get::<_, Option<bool>>("blocks").unwrap_or_default(),
            dead: row.get("dead"),
            event: row.get("event_id"),
            error: row.get("last_error"),
            age: seconds(row.get("seconds")),
        };
        Ok(rows.iter().map(dead).collect())
    }

    pub async fn log_state(&self) -> Result<LogState, Error> {
        let row = self.query_one(sql!("doctor_log"), &[]).await?;
        Ok(LogState {
            ids_left: row.get("ids_left"),
            default_used: row.get("default_used"),
            dead_rows: row.get("dead_rows"),
            live_rows: row.get("live_rows"),
        })
    }

    pub async fn known_handlers(&self) -> Result<Vec<Known>, Error> {
        let rows = self.query(sql!("doctor_handlers"), &[]).await?;
        let known = |row: &tokio_postgres::Row| Known {
            name: row.get("name"),
            topics: row.get("topics"),
            kind: row.get("kind"),
            absent: row.get("absent"),
        };
        Ok(rows.iter().map(known).collect())
    }
}
