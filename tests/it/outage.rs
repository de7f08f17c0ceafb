//! PostgreSQL may go away under a running daemon: it waits, comes back, and everything is delivered.

use outboxd::postgres::ThrowawayPostgres;
use outboxd::postgres::migrate::migrate;
use outboxd::postgres::throwaway::Options;

use crate::harness::{ConfigFile, Gate, NotifySocket, Process, done, outboxd, publish_many, text, until};

#[tokio::test]
async fn a_daemon_survives_a_crash_of_postgresql_and_delivers_everything() {
    let mut postgres = ThrowawayPostgres::start(Options { durable: true, settings: Vec::new() }).await.unwrap();
    migrate(&postgres.target("postgres")).await.unwrap();
    let (mut gate, systemd) = (Gate::closed(), NotifySocket::new());
    let config = ConfigFile::new(&format!("[handler.slow]\ntopics = [\"#\"]\nconcurrency = 2\n{}", gate.command()));
    let mut command = outboxd(None, &["run", "--config", config.path()]);
    command
        .env("DATABASE_URL", format!("postgres://outboxd@/postgres?host={}", postgres.socket_dir().display()))
        .env("NOTIFY_SOCKET", systemd.path())
        .env("WATCHDOG_USEC", "200000");
    let daemon = Process::start(command);
    daemon.logged("leading").await;
    let session = postgres.target("postgres").connect("test").await.unwrap();
    let mut events = publish_many(&session, "a", 10).await;
    gate.begun(2).await;

    postgres.crash().await.unwrap();
    daemon.logged("dispatching ended, connecting again after a pause").await;
    daemon.logged_times("dispatching ended, connecting again after a pause reason=\"cannot reach database", 2).await;
    // An outage of PostgreSQL is no hang of the daemon: systemd must not end it for that.
    let fed = systemd.lines().iter().filter(|line| *line == "WATCHDOG=1").count();
    systemd.heard("WATCHDOG=1", fed + 2).await;

    postgres.start_again().await.unwrap();
    daemon.logged_times("leading", 2).await;
    let session = postgres.target("postgres").connect("test").await.unwrap();
    events.extend(publish_many(&session, "a", 10).await);
    gate.open();
    until("everything is done", async || done(&session, "slow").await == events).await;
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
    let mut begun = [&events[..2], &events[..]].concat();
    begun.sort_unstable();
    assert_eq!(gate.events("begin"), begun, "only what was running ran twice");
    drop(daemon);
    postgres.stop().await.unwrap();
}
