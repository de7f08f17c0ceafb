//! The schema: made, brought up to date, compared with what this version of outboxd wants.
//!
//! Everything that changes it happens on one session under one advisory lock, so that any number of daemons may start at
//! once, and in one transaction, so that no daemon ever sees half a schema.

use std::fmt::{self, Write as _};

use refinery::{Migration, Runner, SchemaVersion};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::{ConnectError, Target, describe};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// What refinery calls its history; in our schema, so that dropping the schema leaves nothing behind.
const HISTORY: &str = "outbox.refinery_schema_history";
/// The advisory lock of everybody who migrates: "outboxd" as a number.
const LOCK: i64 = 0x006f_7574_626f_7864;
const LOCK_WAIT_SECONDS: u32 = 60;

/// How the schema in the database relates to the one this version wants. Versions are the numbers of migrations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaStatus {
    Missing,
    Behind {
        applied: SchemaVersion,
        wanted: SchemaVersion,
    },
    Current,
    Newer {
        found: SchemaVersion,
        wanted: SchemaVersion,
    },
    /// A migration was applied that is not the one of this version, or was left out.
    Divergent {
        version: SchemaVersion,
    },
}

impl fmt::Display for SchemaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no schema yet: run outboxd migrate"),
            Self::Behind { applied, wanted } => {
                write!(f, "the schema is at version {applied}, this outboxd needs {wanted}: run outboxd migrate")
            }
            Self::Current => f.write_str("the schema is current"),
            Self::Newer { found, wanted } => write!(
                f,
                "the schema was made by a newer outboxd (it is at version {found}, this one knows {wanted}): update outboxd"
            ),
            Self::Divergent { version } => write!(
                f,
                "the schema was made by another version of outboxd (migration {version} differs); before 1.0 there is no \
                 upgrade: drop schema outbox and migrate again"
            ),
        }
    }
}

/// Why the schema could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// What is there is not ours to change.
    #[error("{0}")]
    Unusable(SchemaStatus),
    #[error("another session has been migrating this database for {LOCK_WAIT_SECONDS} s; nothing was changed")]
    Busy,
    /// Names the right that is missing, as the statement that gives it. Identifiers come quoted.
    #[error(
        "{role} may not create a schema in database {database}; its owner or a superuser can allow that: GRANT CREATE ON DATABASE {database} TO {role}"
    )]
    NoRight { database: String, role: String },
    /// The role comes quoted.
    #[error(
        "{role} may not read schema outbox: run outboxd as the role that ran `outboxd migrate`, or let that role grant {role} \
         USAGE on schema outbox and what it needs of its tables"
    )]
    Closed { role: String },
    #[error("{doing}")]
    Sql { doing: &'static str, source: tokio_postgres::Error },
    #[error("a migration failed and was rolled back: {message}")]
    Failed { message: String, source: Box<refinery::Error> },
}

/// Brings the schema up to date. Returns the migrations that were applied, none if it was current.
pub async fn migrate(target: &Target) -> Result<Vec<String>, MigrateError> {
    let mut session = target.connect("migrate").await?;
    let client = &mut session.client;
    lock(client).await?;
    match status(client).await? {
        SchemaStatus::Current => return Ok(Vec::new()),
        SchemaStatus::Missing => create_schema(client).await?,
        SchemaStatus::Behind { .. } => {}
        unusable => return Err(MigrateError::Unusable(unusable)),
    }
    let report = runner().run_async(client).await.map_err(|error| {
        let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<tokio_postgres::Error>());
        let message = cause.map_or_else(|| error.to_string(), describe);
        MigrateError::Failed { message, source: Box::new(error) }
    })?;
    Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
    // The end of the session gives the lock back.
}

/// Compares the schema in the database with the one this version wants. Changes nothing.
pub async fn status(client: &Client) -> Result<SchemaStatus, MigrateError> {
    match read_status(client).await {
        Err(MigrateError::Sql { doing, source }) if source.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let failed = |source| MigrateError::Sql { doing, source };
            let row = client.query_one("SELECT quote_ident(current_user)", &[]).await.map_err(failed)?;
            Err(MigrateError::Closed { role: row.try_get(0).map_err(failed)? })
        }
        read => read,
    }
}

async fn read_status(client: &Client) -> Result<SchemaStatus, MigrateError> {
    let failed = |source| MigrateError::Sql { doing: "cannot read which migrations were applied", source };
    let exists = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&HISTORY]).await.map_err(failed)?;
    if !exists.try_get::<_, bool>(0).map_err(failed)? {
        return Ok(SchemaStatus::Missing);
    }
    let history = format!("SELECT version, name, checksum FROM {HISTORY} ORDER BY version");
    let rows = client.query(&history, &[]).await.map_err(failed)?;
    let applied = rows
        .iter()
        .map(|row| Ok(Applied { version: row.try_get(0)?, name: row.try_get(1)?, checksum: row.try_get(2)? }))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    Ok(compare(&applied, &migrations()))
}

/// The statement that makes a trigger of the schema, on one line.
#[must_use]
pub fn trigger(name: &str) -> Option<String> {
    let script = sql();
    let begin = script.find(&format!("CREATE TRIGGER {name} "))?;
    let statement = script[begin..].split(';').next()?;
    Some(statement.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The whole schema as a script for psql, for those who let no daemon create anything. Leaves behind exactly what
/// [`migrate`] does, so that it finds nothing to do afterwards.
#[must_use]
pub fn sql() -> String {
    let mut script = format!(
        "\
-- outboxd {version}: its schema. Run it as the role that is to own it, which may create a schema in the database:
--     psql -X -d DATABASE -f THIS-FILE
\\set ON_ERROR_STOP on
BEGIN;
-- No daemon migrates meanwhile.
SELECT pg_advisory_xact_lock({LOCK});
CREATE SCHEMA IF NOT EXISTS outbox;
-- Which migrations were applied. If this fails, the schema is there already: use outboxd migrate.
CREATE TABLE {HISTORY} (version int4 PRIMARY KEY, name varchar(255), applied_on varchar(255), checksum varchar(255));
",
        version = env!("CARGO_PKG_VERSION"),
    );
    for migration in migrations() {
        let (version, name, checksum) = (migration.version(), migration.name(), migration.checksum());
        // Writing to a string cannot fail.
        let _ = write!(
            script,
            "
--
-- {migration}
--
{text}
INSERT INTO {HISTORY} (version, name, applied_on, checksum)
VALUES ({version}, '{name}', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), '{checksum}');
",
            text = migration.sql().unwrap_or_default().trim_end(),
        );
    }
    script.push_str("COMMIT;\n");
    script
}

fn runner() -> Runner {
    let mut runner = embedded::migrations::runner().set_grouped(true);
    runner.set_migration_table_name(HISTORY);
    runner
}

/// In the order of their versions.
fn migrations() -> Vec<Migration> {
    let mut migrations = embedded::migrations::runner().get_migrations().clone();
    migrations.sort();
    migrations
}

async fn lock(client: &Client) -> Result<(), MigrateError> {
    let locked = client
        .batch_execute(&format!("SET lock_timeout = '{LOCK_WAIT_SECONDS}s'; SELECT pg_advisory_lock({LOCK})"))
        .await;
    locked.map_err(|source| match source.code() {
        Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => MigrateError::Busy,
        _ => MigrateError::Sql { doing: "cannot take the lock of those who migrate", source },
    })
}

async fn create_schema(client: &Client) -> Result<(), MigrateError> {
    let failed = |source| MigrateError::Sql { doing: "cannot create schema outbox", source };
    let facts =
        "SELECT to_regnamespace('outbox') IS NOT NULL, quote_ident(current_database()), quote_ident(current_user)";
    let facts = client.query_one(facts, &[]).await.map_err(failed)?;
    // CREATE SCHEMA IF NOT EXISTS asks for the right to create it even where it exists: somebody may have made it for us.
    if facts.try_get(0).map_err(failed)? {
        return Ok(());
    }
    let (database, role) = (facts.try_get(1).map_err(failed)?, facts.try_get(2).map_err(failed)?);
    client.batch_execute("CREATE SCHEMA outbox").await.map_err(|source| match source.code() {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => MigrateError::NoRight { database, role },
        _ => failed(source),
    })
}

/// A row of the history.
struct Applied {
    version: SchemaVersion,
    name: Option<String>,
    checksum: Option<String>,
}

/// Both in the order of versions.
fn compare(applied: &[Applied], wanted: &[Migration]) -> SchemaStatus {
    let newest = wanted.last().map_or(0, Migration::version);
    let Some(last) = applied.last() else { return SchemaStatus::Missing };
    // Told first: a newer outboxd may also have changed an old migration.
    if last.version > newest {
        return SchemaStatus::Newer { found: last.version, wanted: newest };
    }
    for (at, migration) in wanted.iter().take_while(|migration| migration.version() <= last.version).enumerate() {
        let same = applied.get(at).is_some_and(|row| {
            row.version == migration.version()
                && row.name.as_deref() == Some(migration.name())
                && row.checksum.as_deref() == Some(migration.checksum().to_string().as_str())
        });
        if !same {
            return SchemaStatus::Divergent { version: migration.version() };
        }
    }
    // Every wanted version up to the last applied one has its row; a row too many is a migration that is gone.
    match applied.iter().find(|row| !wanted.iter().any(|migration| migration.version() == row.version)) {
        Some(row) => SchemaStatus::Divergent { version: row.version },
        None if last.version < newest => SchemaStatus::Behind { applied: last.version, wanted: newest },
        None => SchemaStatus::Current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Vec<Migration> {
        ["V1__a", "V2__b", "V4__c"].map(|name| Migration::unapplied(name, "SELECT 1").unwrap()).into()
    }

    fn rows(versions: &[SchemaVersion]) -> Vec<Applied> {
        let wanted = wanted();
        let row = |version: &SchemaVersion| {
            let same = wanted.iter().find(|migration| migration.version() == *version);
            let checksum = same.map_or("0".into(), |migration| migration.checksum().to_string());
            Applied {
                version: *version,
                name: Some(same.map_or("x", Migration::name).into()),
                checksum: Some(checksum),
            }
        };
        versions.iter().map(row).collect()
    }

    #[test]
    fn every_history_has_its_status() {
        let status = |versions: &[SchemaVersion]| compare(&rows(versions), &wanted());
        assert_eq!(status(&[]), SchemaStatus::Missing);
        assert_eq!(status(&[1]), SchemaStatus::Behind { applied: 1, wanted: 4 });
        assert_eq!(status(&[1, 2, 4]), SchemaStatus::Current);
        assert_eq!(status(&[1, 2, 4, 5]), SchemaStatus::Newer { found: 5, wanted: 4 });
        assert_eq!(status(&[2]), SchemaStatus::Divergent { version: 1 });
        assert_eq!(status(&[1, 2, 3]), SchemaStatus::Divergent { version: 3 });
        let mut edited = rows(&[1, 2, 4, 5]);
        edited[0].checksum = Some("1".into());
        assert_eq!(compare(&edited, &wanted()), SchemaStatus::Newer { found: 5, wanted: 4 });
        edited.pop();
        assert_eq!(compare(&edited, &wanted()), SchemaStatus::Divergent { version: 1 });
    }
}
