//! The database of a bench: a server of its own, or one that was named. The schema is made for it and dropped after it.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;

use super::super::Failure;
use super::clock;
use crate::postgres::throwaway::Options;
use crate::postgres::{Session, Target, ThrowawayPostgres, migrate};

/// How often the schema is dropped, when a deadlock keeps it.
const DROPS_MAX: usize = 5;
const DATABASE: &str = "postgres";
/// So that no checkpoint falls into a run, as on a server that is set up for its load; and each line of the log tells whose it is.
const SETTINGS: [(&str, &str); 4] =
    [("shared_buffers", "512MB"), ("max_wal_size", "8GB"), ("checkpoint_timeout", "30min"), ("log_line_prefix", "%a|")];
/// Rows inserted by one statement, and so by one transaction.
const ROWS_TOGETHER: u32 = 20_000;
/// Between two looks at what is done.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The longest a scenario may take to work off what it inserted.
const DRAIN_MAX: Duration = Duration::from_mins(20);

/// See the module's documentation.
pub(super) struct Stand {
    target: Target,
    /// The same for another process.
    url: String,
    /// The bench's own session.
    pub(super) session: Session,
    postmaster: Option<u32>,
    server: Option<ThrowawayPostgres>,
}

/// What the server had done at a moment.
pub(super) struct Mark {
    wal: f64,
    cpu: Option<f64>,
}

/// What the server did between two moments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    pub(super) wal_bytes: f64,
    /// `None` if the server is not a process of this machine.
    pub(super) cpu_seconds: Option<f64>,
}

impl Stand {
    /// The database at `url`, which must not have the schema; without it a server of its own.
    pub(super) async fn open(url: Option<&str>) -> Result<Self, Failure> {
        let (target, url, server) = if let Some(url) = url {
            let env = |name: &str| std::env::var(name).ok();
            (Target::resolve(Some(url), None, &env)?, url.to_owned(), None)
        } else {
            let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let server = ThrowawayPostgres::start(Options { durable: true, settings: settings.into() }).await?;
            let target = server.target(DATABASE);
            let user = target.config().get_user().unwrap_or_default();
            let folder = server.socket_dir().display();
            let url = format!("host='{folder}' port=5432 user='{user}' dbname={DATABASE}");
            (target, url, Some(server))
        };
        let session = target.connect("bench").await?;
        let row =
            session.client.query_one("SELECT to_regnamespace('outbox') IS NOT NULL, pg_backend_pid()", &[]).await?;
        if row.get(0) {
            return Err(Failure::config(
                "this database has a schema outbox already; the bench makes and drops its own: name a database without one",
            ));
        }
        let postmaster = u32::try_from(row.get::<_, i32>(1)).ok().and_then(clock::postmaster_of);
        Ok(Self { target, url, session, postmaster, server })
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Where the database is, for another process.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The throwaway server, if it is one.
    pub(super) fn server(&self) -> Option<&ThrowawayPostgres> {
        self.server.as_ref()
    }

    /// The schema as new, with nothing left to be written to disk from what was before.
    pub(super) async fn fresh(&self) -> Result<(), Failure> {
        self.drop_schema().await?;
        migrate::migrate(&self.target).await?;
        self.settle_down().await
    }

    /// Statistics up to date, and everything on disk, so that neither falls into what is measured.
    pub(super) async fn settle_down(&self) -> Result<(), Failure> {
        self.session.client.batch_execute("VACUUM (ANALYZE) outbox.event, outbox.done").await?;
        if self.server.is_some() {
            self.session.client.batch_execute("CHECKPOINT").await?;
        }
        Ok(())
    }

    /// Inserts so many events, each with a payload of about 200 bytes and a key of its own.
    pub(super) async fn fill(&self, events: u32) -> Result<(), Failure> {
        self.fill_more(0, events).await
    }

    /// The same behind so many that are there.
    pub(super) async fn fill_more(&self, present: u32, events: u32) -> Result<(), Failure> {
        let fill = "INSERT INTO outbox.event (topic, key, payload) \
                    SELECT 'bench.event', 'k' || n, jsonb_build_object('n', n, 'pad', repeat('x', 180)) \
                    FROM generate_series($1::bigint, $2::bigint) n";
        let fill = self.session.client.prepare(fill).await?;
        let mut from = present + 1;
        while from <= present + events {
            let to = (present + events).min(from + ROWS_TOGETHER - 1);
            self.session.client.execute(&fill, &[&i64::from(from), &i64::from(to)]).await?;
            self.session.client.execute("SELECT outbox.add_partitions()", &[]).await?;
            from = to + 1;
        }
        self.settle_down().await
    }

    /// Whether an INSERT rings.
    pub(super) async fn trigger(&self, rings: bool) -> Result<(), Failure> {
        let switch = if rings { "ENABLE" } else { "DISABLE" };
        Ok(self.session.client.batch_execute(&format!("ALTER TABLE outbox.event {switch} TRIGGER USER")).await?)
    }

    /// Whether the statements of new sessions stand in the server's log.
    pub(super) async fn log_statements(&self, all: bool) -> Result<(), Failure> {
        let value = if all { "all" } else { "none" };
        Ok(self
            .session
            .client
            .batch_execute(&format!("ALTER DATABASE {DATABASE} SET log_statement = '{value}'"))
            .await?)
    }

    /// Waits until each event has this many rows in `outbox.done`; returns when that was.
    pub(super) async fn until_done(&self, handlers: u32) -> Result<i64, Failure> {
        let last = "SELECT count(*) >= $1 FROM outbox.done WHERE event_id = (SELECT max(id) FROM outbox.event)";
        let last = self.session.client.prepare(last).await?;
        let all = "SELECT (SELECT count(*) FROM outbox.done) = (SELECT count(*) FROM outbox.event) * $1::bigint";
        let all = self.session.client.prepare(all).await?;
        let handlers = i64::from(handlers);
        let end = Instant::now() + DRAIN_MAX;
        loop {
            let last_is_done = self.session.client.query_one(&last, &[&handlers]).await?.get(0);
            let now = clock::now();
            // To count all of them takes long, and does not count.
            if last_is_done && self.session.client.query_one(&all, &[&handlers]).await?.get(0) {
                return Ok(now);
            }
            if Instant::now() > end {
                return Err(Failure::new(format!("not everything was done within {} s", DRAIN_MAX.as_secs())));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(super) async fn mark(&self) -> Result<Mark, Failure> {
        let row =
            self.session.client.query_one("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8", &[]).await?;
        Ok(Mark { wal: row.get(0), cpu: self.postmaster.and_then(clock::cpu_with_children) })
    }

    pub(super) async fn since(&self, mark: &Mark) -> Result<Spent, Failure> {
        let now = self.mark().await?;
        let cpu_seconds = now.cpu.zip(mark.cpu).map(|(now, then)| now - then);
        Ok(Spent { wal_bytes: now.wal - mark.wal, cpu_seconds })
    }

    /// Rows of `outbox.event` and `outbox.done` that were updated or deleted since the schema is there: what vacuum would have to
    /// clean up. Sessions tell what they did when they end, or after a second.
    pub(super) async fn dead_tuples(&self) -> Result<f64, Failure> {
        let dead = "SELECT coalesce(sum(n_tup_upd + n_tup_del + n_dead_tup), 0)::float8 FROM pg_stat_all_tables \
                    WHERE schemaname = 'outbox' AND relname ~ '^(event|done)(_|$)'";
        Ok(self.session.client.query_one(dead, &[]).await?.get(0))
    }

    /// Drops the schema; a server of its own is ended and removed.
    pub(super) async fn close(self) -> Result<(), Failure> {
        self.drop_schema().await?;
        match self.server {
            Some(server) => Ok(server.stop().await?),
            None => Ok(()),
        }
    }

    async fn drop_schema(&self) -> Result<(), Failure> {
        let drop = "SET client_min_messages = warning; DROP SCHEMA IF EXISTS outbox CASCADE";
        // A daemon that has ended may have left a statement in PostgreSQL that still reads: the two lock the tables in different order.
        for _ in 1..DROPS_MAX {
            match self.session.client.batch_execute(drop).await {
                Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {}
                ended => return Ok(ended?),
            }
        }
        Ok(self.session.client.batch_execute(drop).await?)
    }
}
