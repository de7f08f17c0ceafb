//! What the tail cannot see is found all the same: by the sweep, and by reading everything again in another cluster.

use std::collections::BTreeSet;

use outboxd::Observation;
use outboxd::config::DeliveryConfig;
use outboxd::postgres::Session;

use crate::harness::workload::{COMMON, Gate, NARROW, Receipts, assert_done, insert};
use crate::harness::{Database, Running, daemon, until};

/// `WHERE` for these ids.
fn among(ids: &BTreeSet<i64>) -> String {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    format!("id IN ({})", ids.join(","))
}

fn swept(observation: &Observation) -> bool {
    matches!(observation, Observation::SweepFound { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_with_foreign_transaction_ids_are_found_at_the_next_start() {
    let database = Database::new().await;
    let session = database.session().await;
    let receipts = Receipts::default();
    let builder = || daemon(&database).handler("all", ["#"], receipts.handler());
    let running = Running::start(builder()).await;
    let mut events = insert(&session, COMMON, 5).await;
    assert_done(&database, "all", &events).await;
    running.stop().await;

    // As rows look that another server made: ids of the past, and ids that this cluster has not given out yet.
    let near = "SELECT (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000)::text";
    let near: String = session.client.query_one(near, &[]).await.unwrap().get(0);
    for xid in ["3", "1000000000000", &near] {
        let forged = insert(&session, COMMON, 4).await;
        let forge = format!("UPDATE outbox.event SET xid = '{xid}' WHERE {}", among(&forged));
        session.client.batch_execute(&forge).await.unwrap();
        events.extend(forged);
    }
    let running = Running::start(builder()).await;
    assert_done(&database, "all", &events).await;
    running.observed("the sweep found them", swept).await;
    // The counter reaches one of the forged ids: its rows become visible to the tail, and are known by then.
    let spend = "DO $$ BEGIN FOR n IN 1..1200 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$";
    session.client.batch_execute(spend).await.unwrap();
    events.extend(insert(&session, COMMON, 1).await);
    assert_done(&database, "all", &events).await;
    assert_eq!((receipts.events(), receipts.repeated()), (events, 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_position_passed_by_are_found_at_the_next_start() {
    let database = Database::new().await;
    let session = database.session().await;
    let receipts = Receipts::default();
    let builder = || daemon(&database).handler("all", ["#"], receipts.handler());
    Running::start(builder()).await.stop().await;
    let events = insert(&session, COMMON, 20).await;
    let pass = "INSERT INTO outbox.position (handler, position) VALUES ('all', pg_current_snapshot())";
    session.client.batch_execute(pass).await.unwrap();
    let running = Running::start(builder()).await;
    running.observed("the sweep found them", |o| matches!(o, Observation::SweepFound { deliveries: 20 })).await;
    assert_done(&database, "all", &events).await;
    assert_eq!((receipts.events(), receipts.repeated()), (events, 0));
    running.stop().await;
}

/// A dump restored into another server: every id is foreign, some lie in the future, and the positions mean nothing.
async fn move_to_another_cluster(session: &Session) {
    let restored = "
        UPDATE outbox.installation SET system_identifier = 1;
        UPDATE outbox.event SET xid = CASE id % 3 WHEN 0 THEN '1000000000000' WHEN 1 THEN '3' ELSE xid END;
        INSERT INTO outbox.position (handler, position) SELECT name, '900000000000:900000000000:' FROM outbox.handler";
    session.client.batch_execute(restored).await.unwrap();
}

fn cluster_changed(observation: &Observation) -> bool {
    matches!(observation, Observation::ClusterChanged { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn in_another_cluster_everything_undelivered_runs_and_nothing_done_runs_again() {
    let database = Database::new().await;
    let session = database.session().await;
    let (first, later) = (Receipts::default(), Receipts::default());
    let running = Running::start(daemon(&database).handler("first", ["#"], first.handler())).await;
    let mut all = insert(&session, COMMON, 10).await;
    assert_done(&database, "first", &all).await;
    running.stop().await;
    let builder =
        || daemon(&database).handler("first", ["#"], first.handler()).handler("later", ["#"], later.handler());
    let running = Running::start(builder()).await;
    let mut since = insert(&session, COMMON, 10).await;
    all.extend(&since);
    assert_done(&database, "first", &all).await;
    assert_done(&database, "later", &since).await;
    running.stop().await;

    let undelivered = insert(&session, COMMON, 10).await;
    since.extend(&undelivered);
    all.extend(&undelivered);
    move_to_another_cluster(&session).await;
    let running = Running::start(builder()).await;
    running.observed("the cluster changed", cluster_changed).await;
    assert_done(&database, "first", &all).await;
    assert_done(&database, "later", &since).await;
    assert_eq!((first.repeated(), later.repeated()), (0, 0));
    assert_eq!((first.events(), later.events()), (all, since), "`later` began after the first events");
    running.stop().await;

    // It is at home now.
    let running = Running::start(builder()).await;
    running.observed("asleep", |o| matches!(o, Observation::Asleep)).await;
    assert_eq!(running.count(cluster_changed), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_another_cluster_a_handler_whose_topics_were_widened_still_gets_its_backlog() {
    let database = Database::new().await;
    let session = database.session().await;
    let (receipts, gate) = (Receipts::default(), Gate::closed());
    let builder = |topics: &[&str]| {
        let topics = topics.iter().map(|topic| topic.parse().unwrap()).collect();
        let delivery = DeliveryConfig { concurrency: 1, ..DeliveryConfig::new(topics) };
        daemon(&database).handler_with("wider", delivery, receipts.handler_behind(&gate))
    };
    Running::start(builder(&[COMMON])).await.stop().await;
    let events = insert(&session, COMMON, 10).await;
    // The new topics are registered while the backlog waits.
    let running = Running::start(builder(&[COMMON, NARROW])).await;
    let registered = "SELECT cardinality(topics) = 2 FROM outbox.handler";
    until("registered", async || session.client.query_one(registered, &[]).await.unwrap().get(0)).await;
    running.kill().await;

    move_to_another_cluster(&session).await;
    gate.open();
    let running = Running::start(builder(&[COMMON, NARROW])).await;
    running.observed("the cluster changed", cluster_changed).await;
    assert_done(&database, "wider", &events).await;
    assert_eq!((receipts.events(), receipts.repeated()), (events, 0));
    running.stop().await;
}
