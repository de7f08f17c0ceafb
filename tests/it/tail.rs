//! The tail misses no committed event and reads none twice, whatever the order in which transactions end.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use outboxd::Observation;
use outboxd::config::{Config, DaemonConfig, DeliveryConfig};
use outboxd::postgres::Session;
use outboxd::snapshot::Snapshot;

use crate::harness::workload::{COMMON, Gate, Ledger, NARROW, Producers, Receipts, Shape, assert_done, insert, scaled};
use crate::harness::{Database, Running, daemon, until};

const GIANT: &str = "load.giant";
const GIANT_EVENTS: usize = 20_000;
const OTHER_EVENTS: usize = 6_000;

#[tokio::test(flavor = "multi_thread")]
async fn every_committed_event_comes_exactly_once_and_none_that_was_rolled_back() {
    let database = Database::new().await;
    let session = database.session().await;
    let cached = "ALTER TABLE outbox.event ALTER COLUMN id SET CACHE 50";
    session.client.batch_execute(cached).await.unwrap();
    let (ledger, all, narrow) = (Ledger::default(), Receipts::default(), Receipts::default());
    // Prepared transactions switch the bell off, so that the poll must find them.
    let poll_interval = Some(Duration::from_millis(100));
    let config = Config { daemon: DaemonConfig { poll_interval, ..DaemonConfig::default() }, ..Config::default() };
    let builder = daemon(&database).config(config).handler("all", ["#"], all.handler());
    let running = Running::start(builder.handler("narrow", [NARROW], narrow.handler())).await;
    let shape = Shape { rows_max: 50, pause_max: Duration::from_millis(30), prepare: true };
    let mut producers = Producers::connect(&database, 32, shape, &ledger).await;

    let giant = async {
        session.client.batch_execute("BEGIN").await.unwrap();
        let events = insert(&session, GIANT, scaled(GIANT_EVENTS)).await;
        // What others commit from here on is delivered before the giant ends.
        let witness = insert(&database.session().await, NARROW, 1).await;
        ledger.note_committed(NARROW, witness.clone());
        until("an event is done that was inserted while the giant was open", async || {
            witness.is_subset(&all.events()) && witness.is_subset(&narrow.events())
        })
        .await;
        let most = scaled(OTHER_EVENTS) * 3 / 4;
        all.reached(most).await;
        assert!(all.events().is_disjoint(&events), "events of an open transaction were delivered");
        session.client.batch_execute("COMMIT").await.unwrap();
        ledger.note_committed(GIANT, events);
    };
    let others = async {
        // The giant counts when it is committed; the others go on until they have made all of theirs.
        while ledger.events(Some(COMMON)).len() + ledger.events(Some(NARROW)).len() < scaled(OTHER_EVENTS) {
            producers.produce(500).await;
        }
    };
    tokio::join!(giant, others);
    all.complete(&ledger, None).await;
    narrow.complete(&ledger, Some(NARROW)).await;
    assert_done(&database, "all", &ledger.events(None)).await;
    assert_done(&database, "narrow", &ledger.events(Some(NARROW))).await;
    assert_eq!((all.repeated(), narrow.repeated()), (0, 0));
    assert_eq!(running.count(|o| matches!(o, Observation::SweepFound { .. })), 0);
    println!("tail: {} events, worst wait {:?}", ledger.committed(), all.worst_wait(&ledger));
    running.stop().await;
}

/// Found by the model: a page ended inside one large transaction, and the next began with an older one.
#[tokio::test(flavor = "multi_thread")]
async fn large_transactions_that_commit_while_each_other_is_read_come_exactly_once() {
    let database = Database::new().await;
    let (ledger, receipts, stuck) = (Ledger::default(), Receipts::default(), Receipts::default());
    let gate = Gate::closed();
    let delivery = DeliveryConfig { concurrency: 1, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let builder = daemon(&database).handler_with("stuck", delivery, stuck.handler_behind(&gate));
    let running = Running::start(builder.handler("all", ["#"], receipts.handler())).await;
    let sessions: Vec<_> = join_all((0..6).map(|_| database.session())).await;
    let mut events = Vec::new();
    for session in &sessions {
        session.client.batch_execute("BEGIN").await.unwrap();
        events.push(insert(session, GIANT, 2_500).await);
    }
    // A transaction younger than all of them is read first, so that they are late.
    ledger.note_committed(COMMON, insert(&database.session().await, COMMON, 1).await);
    receipts.complete(&ledger, None).await;
    // The youngest first, each as soon as a page of the one before has come.
    for (number, (session, events)) in sessions.iter().zip(&events).rev().enumerate() {
        session.client.batch_execute("COMMIT").await.unwrap();
        ledger.note_committed(GIANT, events.clone());
        receipts.reached(2_500 * number + 1_000).await;
    }
    receipts.complete(&ledger, None).await;
    gate.open();
    stuck.complete(&ledger, None).await;
    for handler in ["all", "stuck"] {
        assert_done(&database, handler, &ledger.events(None)).await;
    }
    assert_eq!((receipts.repeated(), stuck.repeated()), (0, 0));
    running.stop().await;
}

/// The buffers that a read behind this position touches, as the tail's session reads.
async fn buffers(session: &Session, position: &Snapshot) -> i64 {
    let late: Vec<String> = position.in_progress().iter().map(u64::to_string).collect();
    let after = vec![i64::MIN.to_string(); late.len()];
    let explain = format!(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE head ('{{{}}}', '{{{}}}', '{}', {}, 1000)",
        late.join(","),
        after.join(","),
        position.xmax(),
        i64::MIN
    );
    let plan: serde_json::Value = session.client.query_one(&explain, &[]).await.unwrap().get(0);
    let plan = &plan[0]["Plan"];
    ["Shared Hit Blocks", "Shared Read Blocks"].into_iter().map(|blocks| plan[blocks].as_i64().unwrap()).sum()
}

/// A session that reads as the tail does, with the plan made for the log as it is now.
async fn planned(database: &Database) -> Session {
    let session = database.session().await;
    let head = format!("PREPARE head AS {}", include_str!("../../sql/tail_head.sql"));
    session.client.batch_execute(outboxd::store::TAIL_SETTINGS).await.unwrap();
    session.client.batch_execute(&head).await.unwrap();
    buffers(&session, &"9:9:".parse().unwrap()).await;
    session
}

#[tokio::test]
async fn a_late_transaction_is_found_by_its_id_although_the_plan_was_made_for_an_empty_log() {
    let database = Database::new().await;
    let (late, other) = (database.session().await, database.session().await);
    other.client.batch_execute("ANALYZE outbox.event").await.unwrap();
    let tail = planned(&database).await;
    late.client.batch_execute("BEGIN").await.unwrap();
    insert(&late, COMMON, 1).await;
    let xid: String = late.client.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0);
    insert(&other, GIANT, scaled(GIANT_EVENTS)).await;
    let xmax = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
    let xmax: String = other.client.query_one(xmax, &[]).await.unwrap().get(0);
    late.client.batch_execute("COMMIT").await.unwrap();
    let buffers = buffers(&tail, &format!("{xid}:{xmax}:{xid}").parse().unwrap()).await;
    println!("buffers of a read of one late event among {}: {buffers}", scaled(GIANT_EVENTS));
    assert!(buffers <= 100, "{buffers} buffers to read one late event");
}

#[tokio::test]
async fn an_open_giant_costs_a_read_no_more_than_a_look_at_its_id() {
    let database = Database::new().await;
    let (giant, other) = (database.session().await, database.session().await);
    let tail = planned(&database).await;
    giant.client.batch_execute("BEGIN").await.unwrap();
    insert(&giant, GIANT, scaled(GIANT_EVENTS)).await;
    insert(&other, COMMON, 10).await;
    // Transactions of other tests are left out: their ids say nothing about this log.
    let open = "SELECT pg_current_xact_id()::text, pg_snapshot_xmax(pg_current_snapshot())::text";
    let row = giant.client.query_one(open, &[]).await.unwrap();
    let (xid, xmax): (&str, &str) = (row.get(0), row.get(1));
    let with: Snapshot = format!("{xid}:{xmax}:{xid}").parse().unwrap();
    let without: Snapshot = format!("{xmax}:{xmax}:").parse().unwrap();
    assert_eq!(with.in_progress().len(), 1);
    insert(&other, COMMON, 10).await;
    // The first run of each sets hint bits.
    let mut figures = BTreeMap::new();
    for _ in 0..2 {
        figures.insert("with", buffers(&tail, &with).await);
        figures.insert("without", buffers(&tail, &without).await);
    }
    println!("buffers of a read while a transaction of {} events is open: {figures:?}", scaled(GIANT_EVENTS));
    assert!(figures["with"] <= figures["without"] + 2 && figures["with"] <= 100, "{figures:?}");
    giant.client.batch_execute("COMMIT").await.unwrap();
    assert!(buffers(&tail, &with).await > figures["with"], "the giant's rows come once it has ended");
}
