//! Somebody has locked what the daemon wants to write: only the handler that it belongs to waits.

use std::sync::Arc;
use std::time::Duration;

use outboxd::config::DeliveryConfig;
use outboxd::outcome::{Failure, RetryPolicy};
use outboxd::{Attempt, Event, Observation, Outcome};
use tokio::sync::Notify;

use crate::harness::{Database, Running, daemon, deliveries, done, publish, publish_many, text, until};

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_that_has_locked_a_row_holds_up_only_its_handler() {
    let database = Database::new().await;
    let (session, operator) = (database.session().await, database.session().await);
    let finish = Arc::new(Notify::new());
    let waits = {
        let finish = Arc::clone(&finish);
        move |attempt: Attempt| {
            let finish = Arc::clone(&finish);
            async move {
                if attempt.event.topic == "slow" {
                    finish.notified().await;
                }
            }
        }
    };
    let all = DeliveryConfig { timeout: Duration::from_hours(1), ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let running =
        Running::start(daemon(&database).handler_with("held", all, waits).handler("free", ["#"], async |_: Event| ()))
            .await;
    let slow = publish(&session, "slow").await;
    until("it has a row", async || deliveries(&session, slow).await == ["free|done|1", "held|running|1"]).await;
    operator.client.batch_execute(&format!("BEGIN; SELECT outbox.heartbeat({slow}, 'held', 1)")).await.unwrap();
    finish.notify_waiters();
    let mut events = vec![slow];
    for _ in 0..5 {
        events.extend(publish_many(&session, "quick", 100).await);
        until("the other handler goes on", async || done(&session, "free").await == events).await;
    }
    assert_eq!(deliveries(&session, slow).await, ["free|done|1", "held|running|1"]);
    operator.client.batch_execute("COMMIT").await.unwrap();
    until("and then the held one does", async || done(&session, "held").await == events).await;
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_is_not_committed_yet_holds_up_nobody_else_and_wins() {
    let database = Database::new().await;
    let (session, operator) = (database.session().await, database.session().await);
    let begun = Arc::new(Notify::new());
    let finish = Arc::new(Notify::new());
    let fails = {
        let (begun, finish) = (Arc::clone(&begun), Arc::clone(&finish));
        move |_: Attempt| {
            let (begun, finish) = (Arc::clone(&begun), Arc::clone(&finish));
            async move {
                begun.notify_one();
                finish.notified().await;
                Outcome::Retry { after: None, failure: Failure::new("no") }
            }
        }
    };
    let retry = RetryPolicy { base: Duration::from_millis(1), max: Duration::from_millis(1), ..RetryPolicy::default() };
    let one = DeliveryConfig { retry, ..DeliveryConfig::new(vec!["a".parse().unwrap()]) };
    let running =
        Running::start(daemon(&database).handler_with("held", one, fails).handler("free", ["#"], async |_: Event| ()))
            .await;
    let event = publish(&session, "a").await;
    begun.notified().await;
    operator.client.batch_execute(&format!("BEGIN; SELECT outbox.cancel({event}, 'held')")).await.unwrap();
    finish.notify_one();
    let others = publish_many(&session, "b", 50).await;
    until("the other handler goes on", async || done(&session, "free").await.ends_with(&others)).await;
    operator.client.batch_execute("COMMIT").await.unwrap();
    // Its failure may have been written before, and then runs again until the daemon hears of the cancellation.
    until("cancelled", async || {
        finish.notify_one();
        deliveries(&session, event).await.iter().any(|delivery| delivery.starts_with("held|cancelled"))
            && text(&session, "SELECT count(*) FROM outbox.open").await == "0"
    })
    .await;
    running.stop().await;
}

/// The leader's session waits for no lock for long, and asks about a silent attempt all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_a_silent_attempt_waits_for_a_locked_table() {
    let database = Database::new().await;
    let (session, operator) = (database.session().await, database.session().await);
    let finish = Arc::new(Notify::new());
    let waits = {
        let finish = Arc::clone(&finish);
        move |attempt: Attempt| {
            let finish = Arc::clone(&finish);
            async move {
                if attempt.number == 1 {
                    finish.notified().await;
                }
            }
        }
    };
    let (timeout, max_timeout) = (Duration::from_millis(1500), Some(Duration::from_hours(1)));
    let alive = DeliveryConfig { timeout, max_timeout, ..DeliveryConfig::new(vec!["a".parse().unwrap()]) };
    let running = Running::start(daemon(&database).handler_with("alive", alive, waits)).await;
    let event = publish(&session, "a").await;
    until("it has a row", async || deliveries(&session, event).await == ["alive|running|1"]).await;
    operator.client.batch_execute("BEGIN; LOCK TABLE outbox.open IN ACCESS EXCLUSIVE MODE").await.unwrap();
    running.observed("the lock is in the way", |o| matches!(o, Observation::Hiccup { .. })).await;
    operator.client.batch_execute("ROLLBACK").await.unwrap();
    finish.notify_waiters();
    until("it is done", async || done(&session, "alive").await == [event]).await;
    assert_eq!(running.count(|o| matches!(o, Observation::TermEnded { .. })), 0);
    running.stop().await;
}
