//! A daemon that ends in the middle of its work loses nothing, and one that is stopped repeats nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::config::DeliveryConfig;
use outboxd::{Attempt, DaemonBuilder, Observation, RetryPolicy};

use crate::harness::workload::{COMMON, Gate, Ledger, NARROW, Producers, Receipts, Shape, assert_done, insert, scaled};
use crate::harness::{Database, Running, daemon, until};

const BUSY: Shape = Shape { rows_max: 8, pause_max: Duration::from_millis(10), prepare: false };
const RESTARTS: usize = 6;
const EVENTS: usize = 4_000;

/// Restarts the daemon again and again while producers go on; returns the receipts beyond the first of each event.
async fn restarts(end: impl AsyncFn(Running)) -> usize {
    let database = Database::new().await;
    let (ledger, all, narrow) = (Ledger::default(), Receipts::default(), Receipts::default());
    let builder = || -> DaemonBuilder {
        let max = Duration::from_millis(5);
        daemon(&database).handler("all", ["#"], all.slow_handler(max)).handler("narrow", [NARROW], narrow.handler())
    };
    let mut producers = Producers::connect(&database, 8, BUSY, &ledger).await;
    let restarting = async {
        for _ in 0..RESTARTS {
            let running = Running::start(builder()).await;
            // In the middle of the next events, or of what is left when no more come.
            let enough = (all.len() + scaled(EVENTS) / RESTARTS / 2).min(scaled(EVENTS) - 1);
            until("some more events are received", async || all.len() >= enough).await;
            end(running).await;
        }
    };
    tokio::join!(producers.produce(scaled(EVENTS)), restarting);
    let running = Running::start(builder()).await;
    all.complete(&ledger, None).await;
    narrow.complete(&ledger, Some(NARROW)).await;
    assert_done(&database, "all", &ledger.events(None)).await;
    assert_done(&database, "narrow", &ledger.events(Some(NARROW))).await;
    assert_eq!(running.count(|o| matches!(o, Observation::SweepFound { .. })), 0);
    running.stop().await;
    all.repeated() + narrow.repeated()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_loses_nothing() {
    let repeated = restarts(Running::kill).await;
    println!("{RESTARTS} kills under load: {repeated} deliveries ran again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_daemon_loses_nothing_and_repeats_nothing() {
    assert_eq!(restarts(Running::stop).await, 0);
}

/// A handler whose first attempts never end; it keeps the number of each attempt.
fn hangs_at_first(
    attempts: &Arc<Mutex<Vec<u32>>>,
) -> impl Fn(Attempt) -> futures_util::future::BoxFuture<'static, ()> + use<> {
    let (attempts, closed) = (Arc::clone(attempts), Gate::closed());
    move |attempt| {
        let closed = closed.clone();
        attempts.lock().unwrap().push(attempt.number);
        Box::pin(async move {
            if attempt.number == 1 {
                closed.passed().await;
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_a_killed_daemon_left_running_counts() {
    let database = Database::new().await;
    let session = database.session().await;
    let attempts: Arc<Mutex<Vec<u32>>> = Arc::default();
    let builder = || {
        let retry = RetryPolicy { max_attempts: 2, ..RetryPolicy::default() };
        let delivery = DeliveryConfig { retry, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
        daemon(&database).handler_with("hangs", delivery, hangs_at_first(&attempts))
    };
    let running = Running::start(builder()).await;
    let events = insert(&session, COMMON, 3).await;
    let recorded = "SELECT count(*) FROM outbox.open WHERE state = 'running' AND attempt = 1";
    until("the attempts have rows", async || {
        session.client.query_one(recorded, &[]).await.unwrap().get::<_, i64>(0) == 3
    })
    .await;
    running.kill().await;

    let running = Running::start(builder()).await;
    running.observed("recovered", |o| matches!(o, Observation::Recovered { deliveries: 3 })).await;
    assert_done(&database, "hangs", &events).await;
    assert_eq!(*attempts.lock().unwrap(), [1, 1, 1, 2, 2, 2]);
    let history = "SELECT string_agg(DISTINCT attempt || ' ' || outcome, ', ' ORDER BY attempt || ' ' || outcome)
                   FROM outbox.attempt";
    let history: String = session.client.query_one(history, &[]).await.unwrap().get(0);
    assert_eq!(history, "1 lost, 2 done");
    running.stop().await;
}
