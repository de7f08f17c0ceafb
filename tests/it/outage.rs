//! PostgreSQL may go away under a running daemon: it waits, comes back, and everything is delivered.

use outboxd::config::DeliveryConfig;
use outboxd::postgres::ThrowawayPostgres;
use outboxd::postgres::migrate::migrate;
use outboxd::postgres::throwaway::Options;
use outboxd::{Attempt, Daemon, Observation};

use crate::harness::{
    Calls, ConfigFile, Gate, NotifySocket, Process, Programs, Running, done, outboxd, publish_many, text, until,
    workload,
};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_restart_of_postgresql_repeats_what_ran_and_nothing_else() {
    let mut folder = ThrowawayPostgres::start(Options::default()).await.unwrap();
    let programs = Programs::of(&folder).await;
    folder.crash().await.unwrap();
    let server = programs.serve(folder.socket_dir(), &[], &[]).await;
    let target = server.target("postgres");
    migrate(&target).await.unwrap();
    let (calls, gate) = (Calls::default(), workload::Gate::closed());
    let (kept, closed) = (calls.clone(), gate.clone());
    let handle = move |attempt: Attempt| {
        let (calls, gate) = (kept.clone(), closed.clone());
        async move {
            calls.take(&attempt);
            if attempt.event.topic == "held" {
                gate.passed().await;
            }
        }
    };
    let delivery = DeliveryConfig { concurrency: 10, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let running = Running::start(Daemon::builder().target(target.clone()).handler_with("all", delivery, handle)).await;
    let session = target.connect("test").await.unwrap();
    let mut events = publish_many(&session, "plain", 500).await;
    until("the first are done", async || done(&session, "all").await == events).await;
    let held = publish_many(&session, "held", 5).await;
    events.extend(&held);
    calls.reached(505).await;

    server.stop();
    running.observed("its term ends", |o| matches!(o, Observation::TermEnded { .. })).await;
    let _server = programs.serve(folder.socket_dir(), &[], &[]).await;
    let session = target.connect("test").await.unwrap();
    events.extend(publish_many(&session, "plain", 500).await);
    gate.open();
    until("everything is done", async || done(&session, "all").await == events).await;
    assert!(events.iter().all(|event| calls.of(*event) == 1 + usize::from(held.contains(event))));
    assert_eq!(running.count(|o| matches!(o, Observation::ClusterChanged { .. })), 0);
    running.stop().await;
}
