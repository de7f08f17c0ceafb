//! No wake-up is lost: the bell alone delivers everything, the poll alone delivers everything.

use std::time::Duration;

use outboxd::config::{Config, DaemonConfig};
use outboxd::postgres::Session;
use outboxd::{DaemonBuilder, Observation};
use tokio_postgres::error::SqlState;

use crate::harness::workload::{COMMON, Ledger, NARROW, Producers, Receipts, Shape, assert_done, insert, scaled};
use crate::harness::{Database, Running, daemon, until};

/// Small transactions with pauses around the time after which the daemon falls asleep.
const SPARSE: Shape = Shape { rows_max: 3, pause_max: Duration::from_millis(30), prepare: false };
/// Events of one round: the wake-up of its last event is saved by nobody.
const ROUND_EVENTS: usize = 24;

fn polling(database: &Database, poll_interval: Option<Duration>) -> DaemonBuilder {
    let daemon_config = DaemonConfig { poll_interval, ..DaemonConfig::default() };
    daemon(database).config(Config { daemon: daemon_config, ..Config::default() })
}

/// Ends the daemon's session of this role as soon as there is one.
async fn terminate(session: &Session, role: &str) {
    let name = format!("outboxd {role}");
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = $1";
    until(&format!("the session of the {role} is ended"), async || {
        session.client.query_one(sql, &[&name]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
}

fn asleep(observation: &Observation) -> bool {
    matches!(observation, Observation::Asleep)
}

fn swept(observation: &Observation) -> bool {
    matches!(observation, Observation::SweepFound { .. })
}

/// Many short rounds, because only the last event of a round tells a wake-up that was lost: no later event saves it.
async fn rounds(database: &Database, rounds: usize, kill_every: Option<usize>) {
    let (ledger, all, narrow) = (Ledger::default(), Receipts::default(), Receipts::default());
    let builder = polling(database, None).handler("all", ["#"], all.handler());
    let running = Running::start(builder.handler("narrow", [NARROW], narrow.handler())).await;
    let session = database.session().await;
    let mut producers = Producers::connect(database, 8, SPARSE, &ledger).await;
    // The janitor has a session for the first second of a term, hence right after a kill that begins a new one.
    let faults: [&[&str]; 4] = [&["leader"], &["tail"], &["bell"], &["leader", "janitor"]];
    let mut faults = faults.into_iter().cycle();
    let mut kills = 0;
    for round in 1..=rounds {
        let fault = async {
            if kill_every.is_some_and(|every| round % every == 0) {
                for role in faults.next().unwrap() {
                    terminate(&session, role).await;
                    kills += 1;
                }
            }
        };
        tokio::join!(producers.produce(ROUND_EVENTS), fault);
        all.complete(&ledger, None).await;
        narrow.complete(&ledger, Some(NARROW)).await;
    }
    assert_done(database, "all", &ledger.events(None)).await;
    assert_done(database, "narrow", &ledger.events(Some(NARROW))).await;
    let (sleeps, rung) = (running.count(asleep), running.count(|o| matches!(o, Observation::Woken)));
    let (repeated, wait) = (all.repeated() + narrow.repeated(), all.worst_wait(&ledger));
    println!(
        "bell alone: {} events, {rounds} rounds, fell asleep {sleeps} times, rung {rung} times, {kills} kills, \
         {repeated} repeated, worst wait {wait:?}",
        ledger.committed()
    );
    assert!(rung > rounds, "rung {rung} times only: the bell was hardly needed");
    assert_eq!(running.count(swept), 0);
    if kill_every.is_none() {
        assert_eq!(repeated, 0);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bell_alone_delivers_everything_exactly_once() {
    rounds(&Database::new().await, scaled(60), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bell_alone_delivers_everything_while_the_daemons_sessions_are_killed() {
    rounds(&Database::new().await, scaled(60), Some(9)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_poll_alone_delivers_everything() {
    let database = Database::new().await;
    let session = database.session().await;
    session.client.batch_execute("ALTER TABLE outbox.event DISABLE TRIGGER ring").await.unwrap();
    let (ledger, all, narrow) = (Ledger::default(), Receipts::default(), Receipts::default());
    let builder = polling(&database, Some(Duration::from_millis(100))).handler("all", ["#"], all.handler());
    let running = Running::start(builder.handler("narrow", [NARROW], narrow.handler())).await;
    running.observed("asleep", asleep).await;
    let mut producers = Producers::connect(&database, 8, Shape { prepare: true, ..SPARSE }, &ledger).await;
    for _ in 0..scaled(12) {
        producers.produce(ROUND_EVENTS).await;
        all.complete(&ledger, None).await;
    }
    narrow.complete(&ledger, Some(NARROW)).await;
    running.observed("found by the poll", |o| matches!(o, Observation::PollFound { .. })).await;
    assert_done(&database, "all", &ledger.events(None)).await;
    assert_done(&database, "narrow", &ledger.events(Some(NARROW))).await;
    assert_eq!((all.repeated(), narrow.repeated(), running.count(swept)), (0, 0, 0));
    println!("poll alone: {} events, worst wait {:?}", ledger.committed(), all.worst_wait(&ledger));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_switched_the_bell_off_can_be_prepared_while_the_daemon_sleeps() {
    let database = Database::new().await;
    let session = database.session().await;
    let (ledger, receipts) = (Ledger::default(), Receipts::default());
    let builder = polling(&database, Some(Duration::from_millis(100)));
    let running = Running::start(builder.handler("all", ["#"], receipts.handler())).await;
    running.observed("asleep", asleep).await;

    session.client.batch_execute("BEGIN").await.unwrap();
    insert(&session, COMMON, 1).await;
    let refused = session.client.batch_execute("PREPARE TRANSACTION 'rang'").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
    session.client.batch_execute("ROLLBACK").await.unwrap();

    session.client.batch_execute("BEGIN; SET LOCAL outbox.bell = off").await.unwrap();
    let events = insert(&session, COMMON, 1).await;
    session.client.batch_execute("PREPARE TRANSACTION 'silent'").await.unwrap();
    // One that is committed meanwhile shows that the daemon reads past the prepared one.
    let other = insert(&session, COMMON, 1).await;
    ledger.note_committed(COMMON, other);
    receipts.complete(&ledger, None).await;
    session.client.batch_execute("COMMIT PREPARED 'silent'").await.unwrap();
    ledger.note_committed(COMMON, events);
    receipts.complete(&ledger, None).await;
    assert_done(&database, "all", &ledger.events(None)).await;
    assert_eq!(receipts.repeated(), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_prepared_before_the_daemon_fell_asleep_is_delivered_without_the_poll() {
    let database = Database::new().await;
    let session = database.session().await;
    let (ledger, receipts) = (Ledger::default(), Receipts::default());
    session.client.batch_execute("SELECT setval('outbox.bell', 2); BEGIN").await.unwrap();
    let events = insert(&session, COMMON, 1).await;
    session.client.batch_execute("PREPARE TRANSACTION 'drowsy'").await.unwrap();
    let running = Running::start(polling(&database, None).handler("all", ["#"], receipts.handler())).await;
    // Drowsy by now: the flag says "ring", but one producer has not heard of it.
    let flag = "SELECT last_value FROM outbox.bell";
    until("the flag says ring", async || session.client.query_one(flag, &[]).await.unwrap().get::<_, i64>(0) == 1)
        .await;
    assert_eq!(running.count(asleep), 0);
    session.client.batch_execute("COMMIT PREPARED 'drowsy'").await.unwrap();
    ledger.note_committed(COMMON, events);
    receipts.complete(&ledger, None).await;
    running.observed("asleep", asleep).await;
    running.stop().await;
}
