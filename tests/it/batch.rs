//! Many events in one call: every event has its own outcome, none is lost, and one that cannot be handled takes no other with it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::config::{BatchConfig, DeliveryConfig, OnDeadKey, Record};
use outboxd::postgres::Session;
use outboxd::{Attempt, Failure, Fault, IntoOutcomes, Observation, Outcome, RetryPolicy};
use serde_json::json;
use tokio::sync::Notify;

use crate::harness::{Database, Running, daemon, deliveries, done, text, texts, until};

const HOUR: Duration = Duration::from_hours(1);

fn config(max: usize, wait: Duration) -> DeliveryConfig {
    let (base, max_pause) = (Duration::from_millis(1), Duration::from_millis(1));
    let retry = RetryPolicy { max_attempts: 12, base, max: max_pause, ..RetryPolicy::default() };
    let batch = Some(BatchConfig { max, wait });
    DeliveryConfig { retry, batch, timeout: HOUR, ..DeliveryConfig::new(vec!["a".parse().unwrap()]) }
}

/// So many events in one transaction, with the keys `1`, `2` and so on; their ids.
pub(crate) async fn insert(session: &Session, times: i32) -> Vec<i64> {
    let insert = "INSERT INTO outbox.event (topic, key, payload) \
                  SELECT 'a', n::text, jsonb_build_object('n', n) FROM generate_series(1, $1::integer) n RETURNING id";
    session.client.query(insert, &[&times]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

fn is_second(attempts: &[Attempt]) -> bool {
    attempts.iter().all(|attempt| attempt.number > 1)
}

/// The calls there were, each with its ids.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<Vec<i64>>>>);

impl Calls {
    fn note(&self, attempts: &[Attempt]) {
        self.0.lock().unwrap().push(attempts.iter().map(|attempt| attempt.event.id.0).collect());
    }

    fn all(&self) -> Vec<Vec<i64>> {
        self.0.lock().unwrap().clone()
    }

    /// Notes each call and lets the closure answer it.
    fn handler<O: IntoOutcomes>(
        &self,
        answer: impl Fn(&[Attempt]) -> O + Send + Sync + Clone + 'static,
    ) -> impl Fn(Vec<Attempt>) -> std::future::Ready<O> + Send + Sync + 'static {
        let calls = self.clone();
        move |attempts: Vec<Attempt>| {
            calls.note(&attempts);
            std::future::ready(answer(&attempts))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_begins_when_it_is_full_and_the_rest_when_it_has_waited() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    let full = Calls::default();
    let builder = daemon(&database)
        .batch_handler("short", config(10, Duration::from_millis(50)), calls.handler(|_| ()))
        .batch_handler("full", config(10, HOUR), full.handler(|_| ()));
    let running = Running::start(builder).await;
    let ids = insert(&session, 25).await;
    until("all are done", async || done(&session, "short").await == ids).await;
    assert!(calls.all().iter().all(|call| call.len() <= 10), "{:?}", calls.all());
    assert_eq!(calls.all().concat().len(), 25, "each was handed over once");
    // Five wait for company, for an hour if need be. Five more fill their batch.
    until("two are full", async || done(&session, "full").await == ids[..20]).await;
    let more = insert(&session, 5).await;
    let all: Vec<i64> = ids.iter().chain(&more).copied().collect();
    until("the third is full", async || done(&session, "full").await == all).await;
    assert_eq!(full.all().iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 10]);
    assert_eq!(full.all()[2], all[20..]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_of_a_batch_has_its_own_outcome() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    let each = |attempts: &[Attempt]| -> Vec<Outcome> {
        let of = |attempt: &Attempt| match attempt.event.id.0 % 4 {
            0 => Outcome::Dead { failure: Failure::new("no") },
            1 if attempt.number == 1 => Outcome::Retry { after: None, failure: Failure::new("not yet") },
            2 => Outcome::done_with(attempt.event.id.0),
            _ => Outcome::done(),
        };
        attempts.iter().map(of).collect()
    };
    let delivery = DeliveryConfig { on_done: Some("told".to_owned()), ..config(100, Duration::ZERO) };
    let running = Running::start(daemon(&database).batch_handler("each", delivery, calls.handler(each))).await;
    let ids = insert(&session, 20).await;
    let (dead, good): (Vec<i64>, Vec<i64>) = ids.iter().partition(|id| *id % 4 == 0);
    until("the good ones are done", async || done(&session, "each").await == good).await;
    let found = texts(&session, "SELECT event_id FROM outbox.open WHERE state = 'dead' ORDER BY 1").await;
    assert_eq!(found, dead.iter().map(ToString::to_string).collect::<Vec<_>>());
    let twice = texts(&session, "SELECT event_id FROM outbox.done WHERE attempt = 2 ORDER BY 1").await;
    assert_eq!(twice, good.iter().filter(|id| *id % 4 == 1).map(ToString::to_string).collect::<Vec<_>>());
    let results = "SELECT bool_and((event_id % 4 = 2) = (result IS NOT NULL) AND coalesce(result::text, event_id::text) \
                   = event_id::text) FROM outbox.done";
    assert_eq!(text(&session, results).await, "true");
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event WHERE topic = 'told'").await, good.len().to_string());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_no_call_survives_dies_alone() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    let poison = |attempts: &[Attempt]| -> Result<(), &'static str> {
        if attempts.iter().any(|attempt| attempt.event.key.as_deref() == Some("7")) {
            Err("7 is poison")
        } else {
            Ok(())
        }
    };
    let delivery = DeliveryConfig { breaker: false, ..config(64, Duration::ZERO) };
    let running = Running::start(daemon(&database).batch_handler("picky", delivery, calls.handler(poison))).await;
    let ids = insert(&session, 60).await;
    let good: Vec<i64> = ids.iter().copied().filter(|id| *id != ids[6]).collect();
    until("the good ones are done", async || done(&session, "picky").await == good).await;
    until("the other one is dead", async || {
        texts(&session, "SELECT concat_ws(' ', event_id, state, last_error) FROM outbox.open").await
            == [format!("{} dead 7 is poison", ids[6])]
    })
    .await;
    // With its sixth failure it was by itself.
    let with_it: Vec<usize> = calls.all().iter().filter(|call| call.contains(&ids[6])).map(Vec::len).collect();
    assert_eq!(with_it.len(), 12);
    assert!(with_it.iter().enumerate().all(|(failures, &size)| size <= (64 >> failures).max(1)), "{with_it:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_counts_once_for_the_breaker() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    let once = |attempts: &[Attempt]| {
        let down = || Outcome::Retry { after: None, failure: Failure::new("down").with_fault(Fault::Failing) };
        if is_second(attempts) { Outcome::done() } else { down() }
    };
    let running = Running::start(daemon(&database).batch_handler("once", config(100, HOUR), calls.handler(once))).await;
    let ids = insert(&session, 100).await;
    until("all are done", async || done(&session, "once").await == ids).await;
    assert_eq!(running.count(|o| matches!(o, Observation::BreakerOpened { .. })), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_a_time_out_and_a_wrong_number_of_outcomes_are_failures_of_all() {
    let database = Database::new().await;
    let session = database.session().await;
    let three = |wait| DeliveryConfig { breaker: false, timeout: wait, ..config(3, HOUR) };
    let builder = daemon(&database)
        .batch_handler("panics", three(HOUR), async |attempts: Vec<Attempt>| {
            assert!(is_second(&attempts), "oh");
        })
        .batch_handler("slow", three(Duration::from_millis(100)), async |attempts: Vec<Attempt>| {
            if !is_second(&attempts) {
                std::future::pending::<()>().await;
            }
        })
        .batch_handler("short", three(HOUR), async |attempts: Vec<Attempt>| {
            vec![Outcome::done(); if is_second(&attempts) { attempts.len() } else { 2 }]
        });
    let running = Running::start(builder).await;
    let ids = insert(&session, 3).await;
    for handler in ["panics", "slow", "short"] {
        until("all are done", async || done(&session, handler).await == ids).await;
    }
    let errors = "SELECT handler || ': ' || error || ' ' || count(*) FROM outbox.attempt WHERE attempt = 1 \
                  GROUP BY handler, error ORDER BY 1";
    let expected = [
        "panics: the handler panicked: oh 3",
        "short: the handler gave 2 outcomes for a batch of 3 events; it must give one for each 3",
        "slow: timed out after 100ms 3",
    ];
    until("the history is written", async || texts(&session, errors).await == expected).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_a_batch_is_cancelled_without_the_others_and_with_the_last_the_call_ends() {
    struct Gone(Arc<Notify>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    let database = Database::new().await;
    let session = database.session().await;
    let (begun, gone, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (says, ends, opens) = (Arc::clone(&begun), Arc::clone(&gone), Arc::clone(&gate));
    let handle = move |_: Vec<Attempt>| {
        let (says, gone, opens) = (Arc::clone(&says), Gone(Arc::clone(&ends)), Arc::clone(&opens));
        async move {
            let _gone = gone;
            says.notify_one();
            opens.notified().await;
        }
    };
    // Every attempt has a row before it begins: the batch begins when all have.
    let delivery = DeliveryConfig { record: Record::Start, ..config(3, HOUR) };
    let running = Running::start(daemon(&database).batch_handler("held", delivery, handle)).await;
    let cancel = async |id: i64| text(&session, &format!("SELECT outbox.cancel({id}, 'held')")).await;
    let ids = insert(&session, 3).await;
    begun.notified().await;
    assert_eq!(text(&session, "SELECT string_agg(state, ' ') FROM outbox.open").await, "running running running");
    cancel(ids[1]).await;
    running.observed("it is cancelled", |o| matches!(o, Observation::Cancelled { .. })).await;
    gate.notify_one();
    until("the others are done", async || deliveries(&session, ids[2]).await == ["held|done|1"]).await;
    assert_eq!(deliveries(&session, ids[0]).await, ["held|done|1"]);
    assert_eq!(deliveries(&session, ids[1]).await, ["held|cancelled|1"]);
    gone.notified().await;
    // All of the next are cancelled: nobody opens the gate for them.
    let ids = insert(&session, 3).await;
    begun.notified().await;
    for id in &ids {
        cancel(*id).await;
    }
    gone.notified().await;
    until("they have ended", async || text(&session, "SELECT count(*) FROM outbox.open").await == "0").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_one_of_a_key_in_order_and_the_latest_of_those_that_are_merged() {
    let database = Database::new().await;
    let session = database.session().await;
    let (ordered, merged) = (Calls::default(), Calls::default());
    let in_order = DeliveryConfig { ordered: Some(OnDeadKey::Block), ..config(10, Duration::from_millis(20)) };
    let latest = DeliveryConfig { ordered: Some(OnDeadKey::Skip), coalesce: true, ..config(3, HOUR) };
    let builder = daemon(&database).batch_handler("ordered", in_order, ordered.handler(|_| ())).batch_handler(
        "merged",
        latest,
        merged.handler(|_| ()),
    );
    let running = Running::start(builder).await;
    // Each round has the keys 1, 2 and 3: every key three times.
    let rounds = "INSERT INTO outbox.event (topic, key, payload) SELECT 'a', n::text, '{}' \
                  FROM generate_series(1, 3) round, generate_series(1, 3) n ORDER BY round, n RETURNING id";
    let ids: Vec<i64> = session.client.query(rounds, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    until("all are done", async || done(&session, "ordered").await == ids).await;
    for call in ordered.all() {
        let keys: BTreeSet<i64> = call.iter().map(|id| (id - ids[0]) % 3).collect();
        assert_eq!(keys.len(), call.len(), "{call:?}");
    }
    for key in 0..3 {
        let of_key: Vec<i64> = ordered.all().concat().into_iter().filter(|id| (id - ids[0]) % 3 == key).collect();
        assert!(of_key.is_sorted() && of_key.len() == 3, "{of_key:?}");
    }
    until("all have ended", async || done(&session, "merged").await == ids).await;
    assert_eq!(merged.all().last().unwrap()[..], ids[6..], "the latest of each key went together");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_call_says_of_its_progress_counts_for_each_of_its_events() {
    let database = Database::new().await;
    let session = database.session().await;
    let gate = Arc::new(Notify::new());
    let opens = Arc::clone(&gate);
    let handle = move |attempts: Vec<Attempt>| {
        let opens = Arc::clone(&opens);
        async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            let opened = opens.notified();
            tokio::pin!(opened);
            loop {
                tokio::select! {
                    () = &mut opened => break,
                    _ = ticks.tick() => attempts[0].heartbeat(json!("half")),
                }
            }
        }
    };
    // Without a word it would have timed out before anybody could see a row.
    let delivery = DeliveryConfig { timeout: Duration::from_millis(900), max_timeout: Some(HOUR), ..config(3, HOUR) };
    let running = Running::start(daemon(&database).batch_handler("long", delivery, handle)).await;
    let ids = insert(&session, 3).await;
    let said = "SELECT string_agg(progress::text, ' ') FROM outbox.open";
    until("each has the progress", async || text(&session, said).await == "\"half\" \"half\" \"half\"").await;
    gate.notify_one();
    until("all are done", async || done(&session, "long").await == ids).await;
    assert_eq!(text(&session, "SELECT max(attempt) FROM outbox.done").await, "1");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dies_with_the_daemon_is_handed_over_again() {
    let database = Database::new().await;
    let session = database.session().await;
    let calls = Calls::default();
    let hang = {
        let calls = calls.clone();
        move |attempts: Vec<Attempt>| {
            calls.note(&attempts);
            std::future::pending::<()>()
        }
    };
    let running = Running::start(daemon(&database).batch_handler("index", config(5, HOUR), hang)).await;
    let ids = insert(&session, 8).await;
    until("a batch has begun", async || calls.all() == [ids[..5].to_vec()]).await;
    // Three wait for company; nobody knows of them but the daemon.
    running.kill().await;
    let running =
        Running::start(daemon(&database).batch_handler("index", config(8, HOUR), calls.handler(|_| ()))).await;
    until("all are done", async || done(&session, "index").await == ids).await;
    running.stop().await;
}
