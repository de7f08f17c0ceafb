//! systemd is told what the daemon does, and that it lives.

use rustix::process::Signal;

use crate::harness::{ConfigFile, Database, Gate, NotifySocket, Process, outboxd, publish, until};

fn start(database: &Database, config: &ConfigFile, systemd: &NotifySocket) -> Process {
    let mut command = outboxd(Some(database), &["run", "--config", config.path()]);
    command.env("NOTIFY_SOCKET", systemd.path()).env("WATCHDOG_USEC", "200000");
    Process::start(command)
}

#[tokio::test]
async fn ready_reloading_watchdog_and_stopping_are_told() {
    let (database, mut gate, systemd) = (Database::new().await, Gate::closed(), NotifySocket::new());
    let config = ConfigFile::new(&format!("[handler.slow]\ntopics = [\"#\"]\n{}", gate.command()));
    let mut daemon = start(&database, &config, &systemd);
    systemd.heard("READY=1", 1).await;
    systemd.heard("STATUS=leading", 1).await;

    daemon.signal(Signal::HUP);
    systemd.heard("READY=1", 2).await;
    let lines = systemd.lines();
    let at = |wanted: &str| lines.iter().rposition(|line| line.starts_with(wanted)).expect(wanted);
    assert!(at("RELOADING=1") < at("MONOTONIC_USEC=") && at("MONOTONIC_USEC=") < at("READY=1"), "{lines:?}");

    // Idle: nothing but the watchdog wakes the loop.
    let fed = lines.iter().filter(|line| *line == "WATCHDOG=1").count();
    systemd.heard("WATCHDOG=1", fed + 3).await;

    let session = database.session().await;
    publish(&session, "a").await;
    gate.begun(1).await;
    daemon.signal(Signal::TERM);
    systemd.heard("STOPPING=1", 1).await;
    // A daemon that drains lives.
    let fed = systemd.lines().iter().filter(|line| *line == "WATCHDOG=1").count();
    systemd.heard("WATCHDOG=1", fed + 2).await;
    gate.open();
    assert_eq!(daemon.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_standby_is_ready_too_and_stays_a_standby_over_any_number_of_reloads() {
    let (database, gate, systemd) = (Database::new().await, Gate::opened(), NotifySocket::new());
    let config = ConfigFile::new(&format!("[handler.slow]\ntopics = [\"#\"]\n{}", gate.command()));
    let leader = Process::run(&database, &config);
    leader.logged("leading").await;
    let standby = start(&database, &config, &systemd);
    systemd.heard("READY=1", 1).await;
    let status = || systemd.lines().iter().rfind(|line| line.starts_with("STATUS=")).cloned().unwrap();
    assert!(status().starts_with("STATUS=standing by: session "), "{}", status());
    for reload in 1..=6 {
        standby.signal(Signal::HUP);
        systemd.heard("READY=1", 1 + reload).await;
        assert!(status().starts_with("STATUS=standing by: session "), "{}", status());
    }
    systemd.heard("WATCHDOG=1", 2).await;

    // What it read last is what it leads with.
    config.write(&format!("[handler.other]\ntopics = [\"#\"]\n{}", gate.command()));
    standby.signal(Signal::HUP);
    systemd.heard("READY=1", 8).await;
    drop(leader);
    systemd.heard("STATUS=leading", 1).await;
    let session = database.session().await;
    let event = publish(&session, "a").await;
    until("it delivers", async || {
        crate::harness::deliveries(&session, event).await.contains(&"other|done|1".to_owned())
    })
    .await;
}
