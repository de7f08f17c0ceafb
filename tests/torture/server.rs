//! PostgreSQL under torture: durable, with prepared transactions, and ended in every way it can be.

use std::sync::Arc;
use std::time::Duration;

use outboxd::postgres::migrate::migrate;
use outboxd::postgres::throwaway::Options;
use outboxd::postgres::{Session, Target, ThrowawayPostgres};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

const DATABASE: &str = "torture";
/// An orderly shutdown takes no longer; then it becomes an immediate one.
const FAST_MAX: Duration = Duration::from_secs(15);

/// What the SQL handler does, and where that can be counted. Without a unique key: it must be called exactly once.
const SCHEMA: &str = "
CREATE SCHEMA torture;
CREATE TABLE torture.effect (event_id bigint NOT NULL, n bigint NOT NULL);
CREATE TABLE torture.account AS SELECT n AS id, 0 AS balance FROM generate_series(1, 12) n;
CREATE TABLE torture.mood (fails boolean NOT NULL);
CREATE FUNCTION torture.effect(e outbox.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO torture.effect VALUES (e.id, (e.payload->>'n')::bigint);
    IF random() < 0.01 AND (SELECT fails FROM torture.mood) THEN
        RAISE EXCEPTION 'not now';
    ELSIF random() < 0.003 THEN
        PERFORM pg_sleep(1.3 * random());
    END IF;
    RETURN NULL;
END $$;";

#[derive(Clone)]
pub(crate) struct Server {
    postgres: Arc<Mutex<ThrowawayPostgres>>,
    target: Target,
    pub(crate) log_file: std::path::PathBuf,
}

impl Server {
    pub(crate) async fn start(fails: bool) -> Self {
        let settings = [
            ("max_connections", "200"),
            ("max_prepared_transactions", "40"),
            ("shared_buffers", "256MB"),
            ("restart_after_crash", "on"),
            ("log_checkpoints", "off"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let postgres = ThrowawayPostgres::start(Options { durable: true, settings }).await.unwrap_or_else(|error| {
            eprintln!("cannot test: {error}");
            std::process::exit(1)
        });
        let admin = postgres.target("postgres").connect("torture").await.unwrap();
        admin.client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await.unwrap();
        let target = postgres.target(DATABASE);
        migrate(&target).await.unwrap();
        let session = target.connect("torture").await.unwrap();
        session.client.batch_execute(SCHEMA).await.unwrap();
        session.client.execute("INSERT INTO torture.mood VALUES ($1)", &[&fails]).await.unwrap();
        let log_file = postgres.log_file();
        Self { postgres: Arc::new(Mutex::new(postgres)), target, log_file }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// A session of the harness, for as long as it takes to get one.
    pub(crate) async fn session(&self) -> Session {
        loop {
            if let Ok(session) = self.target.connect("torture").await {
                return session;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// No checkpoint, every session cut off, recovery at the start.
    pub(crate) async fn immediate(&self, down: Duration) {
        let mut postgres = self.postgres.lock().await;
        postgres.crash().await.unwrap();
        sleep(down).await;
        postgres.start_again().await.unwrap();
    }

    /// Sessions are ended and a checkpoint is written; then it starts again.
    pub(crate) async fn restart(&self) {
        let mut postgres = self.postgres.lock().await;
        let pid = postgres.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let file = postgres.socket_dir().join("data/postmaster.pid");
        let ended = async {
            while file.exists() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = timeout(FAST_MAX, ended).await;
        postgres.crash().await.unwrap();
        postgres.start_again().await.unwrap();
    }

    /// The end of one backend by kill -9: PostgreSQL ends all of them and recovers.
    pub(crate) async fn kill_backend(&self, role: &str) -> bool {
        let session = self.session().await;
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'outboxd ' || $1 LIMIT 1";
        let Ok(Some(row)) = session.client.query_opt(sql, &[&role]).await else { return false };
        let pid = Pid::from_raw(row.get(0)).unwrap();
        // It may have ended meanwhile, and its number is not given out again so soon.
        kill_process(pid, Signal::KILL).is_ok()
    }

    pub(crate) async fn stop(self) {
        let Ok(postgres) = Arc::try_unwrap(self.postgres).map(Mutex::into_inner) else { return };
        postgres.stop().await.unwrap();
    }
}
