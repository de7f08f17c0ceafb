//! Of the events of a key that wait, only the latest is handed over; the others are done as merged, visibly, and nothing is lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::config::{DeliveryConfig, OnDeadKey};
use outboxd::postgres::Session;
use outboxd::{Attempt, Failure, Outcome, RetryPolicy};
use tokio::sync::Notify;

use crate::harness::{Database, Running, daemon, text, texts, until};

fn config() -> DeliveryConfig {
    let (base, max) = (Duration::from_millis(1), Duration::from_millis(1));
    let retry = RetryPolicy { max_attempts: 3, base, max, ..RetryPolicy::default() };
    let topics = vec!["changed".parse().unwrap()];
    let ordered = Some(OnDeadKey::Skip);
    DeliveryConfig { retry, ordered, coalesce: true, timeout: Duration::from_hours(1), ..DeliveryConfig::new(topics) }
}

/// So many changes of a key in one transaction; their ids.
async fn change(session: &Session, key: &str, times: i32) -> Vec<i64> {
    let insert = "INSERT INTO outbox.event (topic, key, payload) SELECT 'changed', $1, '{}' FROM generate_series(1, $2) RETURNING id";
    session.client.query(insert, &[&key, &times]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// `id outcome merged_into` of what has ended, in the order of the ids.
async fn ended(session: &Session) -> Vec<String> {
    texts(
        session,
        "SELECT concat_ws(' ', event_id, outcome, result->>'merged_into') FROM outbox.done ORDER BY event_id",
    )
    .await
}

#[derive(Clone, Default)]
struct Calls {
    ids: Arc<Mutex<Vec<i64>>>,
    gate: Arc<Notify>,
    answers: Arc<Mutex<Vec<Outcome>>>,
}

impl Calls {
    /// Every call waits until it is let go.
    fn handler(&self) -> impl Fn(Attempt) -> outboxd::handler::OutcomeFuture<'static> + Send + Sync + 'static + use<> {
        let calls = self.clone();
        move |attempt: Attempt| {
            calls.ids.lock().unwrap().push(attempt.event.id.0);
            let calls = calls.clone();
            Box::pin(async move {
                calls.gate.notified().await;
                calls.answers.lock().unwrap().pop().unwrap_or_else(Outcome::done)
            })
        }
    }

    async fn are(&self, ids: &[i64]) {
        until(&format!("{ids:?} were called"), async || *self.ids.lock().unwrap() == ids).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_that_wait_in_memory_the_latest_runs() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("index", config(), calls.handler())).await;
    let first = change(&session, "a", 1).await[0];
    calls.are(&[first]).await;
    let more = change(&session, "a", 20).await;
    let last = more[19];
    until("nineteen are merged", async || ended(&session).await.len() == 19).await;
    calls.gate.notify_one();
    calls.are(&[first, last]).await;
    calls.gate.notify_one();
    until("all have ended", async || ended(&session).await.len() == 21).await;
    let mut expected = vec![format!("{first} done")];
    expected.extend(more[..19].iter().map(|id| format!("{id} done ")));
    expected.push(format!("{last} done"));
    for (found, expected) in ended(&session).await.iter().zip(&expected) {
        // Each says which one does its work, which was the latest then.
        assert!(found.starts_with(expected.as_str()), "{found} {expected}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_that_have_rows_the_latest_runs_and_an_older_one_never_after_it() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("index", config(), calls.handler())).await;
    let first = change(&session, "a", 1).await[0];
    calls.are(&[first]).await;
    // It lasts, so it has a row, and those behind it have.
    until("it has a row", async || text(&session, "SELECT count(*) FROM outbox.open").await == "1").await;
    let second = change(&session, "a", 1).await[0];
    until("the second is behind it", async || {
        texts(&session, "SELECT state FROM outbox.open ORDER BY n").await == ["running", "blocked"]
    })
    .await;
    let third = change(&session, "a", 1).await[0];
    until("the third is in its place", async || ended(&session).await == [format!("{second} done {third}")]).await;
    // The first one fails: it does not run again, because the third does its work.
    calls.answers.lock().unwrap().push(Outcome::Retry { after: None, failure: Failure::new("no") });
    calls.gate.notify_one();
    calls.are(&[first, third]).await;
    calls.gate.notify_one();
    let all = [format!("{first} done {third}"), format!("{second} done {third}"), format!("{third} done")];
    until("all have ended", async || ended(&session).await == all).await;
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_alone_runs_again_until_a_later_one_comes() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    let mut slow = config();
    (slow.retry.base, slow.retry.max) = (Duration::from_hours(1), Duration::from_hours(1));
    slow.retry.backoff = outboxd::outcome::Backoff::List(vec![Duration::from_hours(1)]);
    let running = Running::start(daemon(&database).handler_with("index", slow, calls.handler())).await;
    let after = Some(Duration::from_hours(1));
    calls.answers.lock().unwrap().push(Outcome::Retry { after, failure: Failure::new("no") });
    let first = change(&session, "a", 1).await[0];
    calls.are(&[first]).await;
    calls.gate.notify_one();
    until("it waits to run again", async || texts(&session, "SELECT state FROM outbox.open").await == ["retrying"])
        .await;
    // Another key is not concerned.
    let other = change(&session, "b", 1).await[0];
    calls.are(&[first, other]).await;
    calls.gate.notify_one();
    let second = change(&session, "a", 1).await[0];
    calls.are(&[first, other, second]).await;
    calls.gate.notify_one();
    let all = [format!("{first} done {second}"), format!("{other} done"), format!("{second} done")];
    until("all have ended", async || ended(&session).await == all).await;
    running.stop().await;
}

/// Whatever fails, whatever is killed: the last one that is handed over of each key is the latest, and every event has ended.
#[tokio::test(flavor = "multi_thread")]
async fn the_latest_of_every_key_is_handed_over_last_whatever_fails_and_dies() {
    let database = Database::new().await;
    let session = database.session().await;
    let last: Arc<Mutex<BTreeMap<String, i64>>> = Arc::default();
    let start = async || {
        let last = Arc::clone(&last);
        let flaky = move |attempt: Attempt| {
            let last = Arc::clone(&last);
            async move {
                if fastrand::u8(..4) == 0 {
                    return Outcome::Retry { after: None, failure: Failure::new("no") };
                }
                last.lock().unwrap().insert(attempt.event.key.clone().unwrap(), attempt.event.id.0);
                Outcome::done()
            }
        };
        let config = DeliveryConfig { retry: RetryPolicy { max_attempts: 1000, ..config().retry }, ..config() };
        Running::start(daemon(&database).handler_with("index", config, flaky)).await
    };
    let mut running = start().await;
    for round in 0..6 {
        for _ in 0..40 {
            change(&session, &format!("k{}", fastrand::u8(..10)), fastrand::i32(1..6)).await;
        }
        if round % 2 == 0 {
            running.kill().await;
            running = start().await;
        }
    }
    let left =
        "SELECT count(*) FROM outbox.event e WHERE NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = e.id)";
    until("every event has ended", async || text(&session, left).await == "0").await;
    let latest = texts(&session, "SELECT key || ' ' || max(id) FROM outbox.event GROUP BY key ORDER BY key").await;
    let handed: Vec<String> = last.lock().unwrap().iter().map(|(key, id)| format!("{key} {id}")).collect();
    assert_eq!(handed, latest);
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
    let merged = text(&session, "SELECT count(*) FROM outbox.done WHERE result ? 'merged_into'").await;
    assert!(merged.parse::<u32>().unwrap() > 0);
    running.stop().await;
}
