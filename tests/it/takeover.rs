//! One daemon dispatches; another takes its place, however it went.

use rustix::process::Signal;

use crate::harness::{ConfigFile, Database, Gate, Process, deliveries, publish, text, texts, until};

fn config(gate: &Gate) -> ConfigFile {
    ConfigFile::new(&format!("[handler.slow]\ntopics = [\"#\"]\n{}", gate.command()))
}

#[tokio::test]
async fn a_standby_takes_over_from_a_leader_that_was_killed_and_from_one_that_was_stopped() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let config = config(&gate);
    let session = database.session().await;
    let mut first = Process::run(&database, &config);
    first.logged("leading: this daemon dispatches").await;
    let mut second = Process::run(&database, &config);
    second.logged("standing by: another daemon leads leader=\"session ").await;
    let event = publish(&session, "a").await;
    until("the first delivers", async || deliveries(&session, event).await == ["slow|done|1"]).await;
    assert!(!second.log().contains("leading: this daemon dispatches"), "{}", second.log());

    first.signal(Signal::KILL);
    first.ended().await;
    second.logged("leading: this daemon dispatches").await;
    let event = publish(&session, "a").await;
    until("the second delivers", async || deliveries(&session, event).await == ["slow|done|1"]).await;

    let third = Process::run(&database, &config);
    third.logged("standing by: another daemon leads").await;
    second.signal(Signal::TERM);
    assert_eq!(second.ended().await.code(), Some(0));
    third.logged("leading: this daemon dispatches").await;
    let event = publish(&session, "a").await;
    until("the third delivers", async || deliveries(&session, event).await == ["slow|done|1"]).await;
    assert_eq!(gate.events("begin").len(), 3);
}

#[tokio::test]
async fn sigterm_ends_a_standby_at_once() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let config = config(&gate);
    let leader = Process::run(&database, &config);
    leader.logged("leading").await;
    let mut standby = Process::run(&database, &config);
    standby.logged("standing by").await;
    standby.signal(Signal::TERM);
    assert_eq!(standby.ended().await.code(), Some(0));
}

/// Takes as long as a leader may be silent, ten seconds.
#[tokio::test]
async fn a_frozen_leader_is_deposed_and_writes_nothing_when_it_wakes() {
    let (database, mut gate) = (Database::new().await, Gate::closed());
    let config = config(&gate);
    let session = database.session().await;
    let frozen = Process::run(&database, &config);
    frozen.logged("leading").await;
    let event = publish(&session, "a").await;
    until("the attempt that lasts has a row", async || deliveries(&session, event).await == ["slow|running|1"]).await;
    let standby = Process::run(&database, &config);
    standby.logged("standing by").await;
    frozen.signal(Signal::STOP);
    standby.logged("ended the session of a silent leader").await;
    standby.logged("leading").await;
    standby.logged("recovered what a stopped daemon left running deliveries=1").await;
    // The frozen one can set the bell's flag no more: it might say "be silent" when it wakes, while the standby sleeps.
    let tails = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'outboxd tail'";
    assert_eq!(text(&session, tails).await, "1");
    gate.open();
    until("the standby delivers", async || deliveries(&session, event).await == ["slow|done|2"]).await;

    frozen.signal(Signal::CONT);
    frozen.logged("dispatching ended, connecting again after a pause").await;
    frozen.logged("standing by: another daemon leads").await;
    // The command of its own attempt has ended too, and it wanted to write that.
    assert_eq!(deliveries(&session, event).await, ["slow|done|2"]);
    let history = texts(&session, "SELECT attempt || ' ' || outcome FROM outbox.attempt ORDER BY 1").await;
    assert_eq!(history, ["1 lost", "2 done"]);
    let event = publish(&session, "a").await;
    until("the standby goes on", async || deliveries(&session, event).await == ["slow|done|1"]).await;
}
