//! However a daemon ends, what it had finished stays finished, and what it had not runs again.

use std::os::unix::process::ExitStatusExt as _;

use rustix::process::Signal;

use crate::harness::{ConfigFile, Database, Gate, Process, deliveries, done, lives, publish_many, text, texts, until};

/// A daemon with one handler, `slow`, whose runs wait for the gate.
fn config(gate: &Gate, daemon: &str) -> ConfigFile {
    let command = gate.command();
    ConfigFile::new(&format!("[daemon]\n{daemon}\n[handler.slow]\ntopics = [\"#\"]\nconcurrency = 4\n{command}"))
}

async fn running_rows(session: &outboxd::postgres::Session, count: usize) {
    until("the attempts that last have rows", async || {
        texts(session, "SELECT 1 FROM outbox.open WHERE state = 'running'").await.len() == count
    })
    .await;
}

#[tokio::test]
async fn sigterm_lets_what_runs_finish_and_starts_nothing_more() {
    let (database, mut gate) = (Database::new().await, Gate::closed());
    let config = config(&gate, "");
    let session = database.session().await;
    let mut daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    let events = publish_many(&session, "a.b", 20).await;
    gate.begun(4).await;
    daemon.signal(Signal::TERM);
    daemon.logged("stopping: waiting for running attempts running=4").await;
    gate.open();
    assert_eq!(daemon.ended().await.code(), Some(0));
    daemon.logged("stopped cut_off=0").await;
    assert_eq!(gate.events("begin"), events[..4]);
    assert_eq!(gate.events("end"), events[..4]);
    assert_eq!(done(&session, "slow").await, events[..4]);

    let mut daemon = Process::run(&database, &config);
    until("the rest is done", async || done(&session, "slow").await == events).await;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(0));
    assert_eq!(gate.events("begin"), events, "each ran once");
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
    assert_eq!(text(&session, "SELECT max(attempt) FROM outbox.done").await, "1");
}

#[tokio::test]
async fn a_second_sigterm_stops_at_once_and_takes_the_commands_with_it() {
    let (database, mut gate) = (Database::new().await, Gate::closed());
    let config = config(&gate, "");
    let session = database.session().await;
    let mut daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    let event = publish_many(&session, "a.b", 1).await[0];
    gate.begun(1).await;
    daemon.signal(Signal::TERM);
    daemon.logged("stopping: waiting for running attempts").await;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(1));
    daemon.logged("outboxd: stopped at once by a second signal; attempts that ran will run again").await;
    let command = gate.last_pid();
    until("the command has ended", async || !lives(command)).await;
    assert!(gate.events("end").is_empty());
    gate.open();
    let _next = Process::run(&database, &config);
    until("it ran again", async || done(&session, "slow").await == [event]).await;
}

#[tokio::test]
async fn what_outlasts_the_drain_timeout_is_cut_off_and_runs_again() {
    let (database, mut gate) = (Database::new().await, Gate::closed());
    let config = config(&gate, "drain_timeout = \"100ms\"");
    let session = database.session().await;
    let mut daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    let event = publish_many(&session, "a.b", 1).await[0];
    running_rows(&session, 1).await;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(0));
    daemon.logged("stopped cut_off=1").await;
    let command = gate.last_pid();
    until("the command has ended", async || !lives(command)).await;
    let row = "SELECT concat_ws('|', state, attempt, failures, last_error) FROM outbox.open";
    assert_eq!(text(&session, row).await, "retrying|1|0|the daemon stopped before attempt 1 had ended");
    gate.open();
    let _next = Process::run(&database, &config);
    until("it ran again", async || deliveries(&session, event).await == ["slow|done|2"]).await;
}

#[tokio::test]
async fn after_sigkill_everything_is_finished_and_what_ran_long_counts_its_attempt() {
    let (database, mut gate) = (Database::new().await, Gate::closed());
    let config = config(&gate, "");
    let session = database.session().await;
    let mut daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    let events = publish_many(&session, "a.b", 12).await;
    running_rows(&session, 4).await;
    let commands: Vec<u32> = gate.runs().iter().map(|run| run.3).collect();
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.ended().await.signal(), Some(9));
    // Nobody is left to end them: the commands of a daemon that was killed go on by themselves.
    assert!(commands.iter().all(|&command| lives(command)));
    gate.open();
    until("the orphans have ended by themselves", async || gate.events("end") == events[..4]).await;

    let next = Process::run(&database, &config);
    next.logged("recovered what a stopped daemon left running deliveries=4").await;
    until("everything is done", async || done(&session, "slow").await == events).await;
    let attempts = texts(&session, "SELECT attempt FROM outbox.done ORDER BY event_id").await;
    assert_eq!(attempts, ["2", "2", "2", "2", "1", "1", "1", "1", "1", "1", "1", "1"]);
    let history =
        "SELECT concat_ws('|', attempt, outcome, error) FROM outbox.attempt ORDER BY event_id, attempt LIMIT 2";
    assert_eq!(texts(&session, history).await, ["1|lost|the daemon ended while this attempt ran", "2|done"]);
    assert_eq!(texts(&session, "SELECT 1 FROM outbox.attempt").await.len(), 8);
    let mut begun = [&events[..4], &events[..]].concat();
    begun.sort_unstable();
    assert_eq!(gate.events("begin"), begun, "only what was running ran twice");
}
