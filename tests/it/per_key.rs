//! So many attempts of a key at a time, end to end: a key with a backlog, or whose target hangs, holds up no other, and nothing of it is
//! lost, whatever fails, leaves or is given up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::config::{DeliveryConfig, OnDeadKey};
use outboxd::daemon::Flow;
use outboxd::postgres::Session;
use outboxd::{Attempt, Failure, Outcome, RetryPolicy};
use tokio::sync::Semaphore;

use crate::harness::{Database, Running, daemon, text, texts, until};

/// More than a lane holds.
const BACKLOG: usize = 4500;

fn per_key(most: usize) -> DeliveryConfig {
    let (base, max) = (Duration::from_millis(1), Duration::from_millis(20));
    let retry = RetryPolicy { max_attempts: 1000, base, max, ..RetryPolicy::default() };
    let topics = vec!["#".parse().unwrap()];
    let (concurrency_per_key, timeout) = (Some(most), Duration::from_hours(1));
    DeliveryConfig { concurrency: 8, concurrency_per_key, retry, timeout, ..DeliveryConfig::new(topics) }
}

/// What a handler was called with, and how many calls of a key there were at the same time.
#[derive(Clone)]
struct Calls {
    log: Arc<Mutex<Log>>,
    /// Calls of keys that begin with `hot` end when they get one of these.
    hot: Arc<Semaphore>,
}

#[derive(Default)]
struct Log {
    running: BTreeMap<String, usize>,
    most: BTreeMap<String, usize>,
    succeeded: BTreeMap<String, BTreeSet<i64>>,
}

impl Calls {
    fn new() -> Self {
        Self { log: Arc::default(), hot: Arc::new(Semaphore::new(0)) }
    }

    fn open(&self) {
        self.hot.add_permits(1_000_000);
    }

    /// `fails`: one of so many calls of the other keys fails, none with 0.
    fn handler(
        &self,
        fails: u8,
    ) -> impl Fn(Attempt) -> outboxd::handler::OutcomeFuture<'static> + Send + Sync + 'static + use<> {
        let calls = self.clone();
        move |attempt: Attempt| {
            let key = attempt.event.key.clone().unwrap();
            {
                let mut log = calls.log.lock().unwrap();
                let running = log.running.entry(key.clone()).or_default();
                *running += 1;
                let running = *running;
                let most = log.most.entry(key.clone()).or_default();
                *most = running.max(*most);
            }
            let calls = calls.clone();
            Box::pin(async move {
                if key.starts_with("hot") {
                    calls.hot.acquire().await.unwrap().forget();
                }
                tokio::task::yield_now().await;
                let outcome = if fails > 0 && fastrand::u8(..fails) == 0 {
                    Outcome::Retry { after: None, failure: Failure::new("now and then") }
                } else {
                    Outcome::done()
                };
                let mut log = calls.log.lock().unwrap();
                *log.running.get_mut(&key).unwrap() -= 1;
                if matches!(outcome, Outcome::Done { .. }) {
                    log.succeeded.entry(key).or_default().insert(attempt.event.id.0);
                }
                outcome
            })
        }
    }

    fn most(&self, key: &str) -> usize {
        self.log.lock().unwrap().most.get(key).copied().unwrap_or_default()
    }

    fn running(&self, key: &str) -> usize {
        self.log.lock().unwrap().running.get(key).copied().unwrap_or_default()
    }

    fn succeeded(&self, key: &str) -> usize {
        self.log.lock().unwrap().succeeded.get(key).map_or(0, BTreeSet::len)
    }
}

async fn insert(session: &Session, key: &str, count: usize) {
    let query = "INSERT INTO outbox.event (topic, key, payload) SELECT 'a', $1, '{}' FROM generate_series(1, $2)";
    session.client.execute(query, &[&key, &i32::try_from(count).unwrap()]).await.unwrap();
}

/// Waits until nothing is open and so many are done.
async fn all_done(session: &Session, count: usize) {
    let query =
        "SELECT (SELECT count(*) FROM outbox.done WHERE outcome = 'done') || ' ' || (SELECT count(*) FROM outbox.open)";
    until("all are done", async || text(session, query).await == format!("{count} 0")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_target_hangs_holds_up_no_other_however_many_of_it_wait() {
    let (database, calls) = (Database::new().await, Calls::new());
    let session = database.session().await;
    insert(&session, "hot", BACKLOG).await;
    insert(&session, "other", 500).await;
    insert(&session, "third", 500).await;
    let running = Running::start(daemon(&database).handler_with("h", per_key(6), calls.handler(0))).await;
    until("the others are done", async || calls.succeeded("other") + calls.succeeded("third") == 1000).await;
    assert_eq!((calls.running("hot"), calls.most("hot"), calls.succeeded("hot")), (6, 6, 0));
    let blocked = text(&session, "SELECT blocked FROM outbox.backlog").await.parse::<usize>().unwrap();
    assert!(blocked > BACKLOG / 2, "{blocked} wait with a row");
    let why = text(&session, "SELECT why || ': ' || detail FROM outbox.stuck").await;
    assert_eq!(why, "blocked: as many of its key as may run do (concurrency_per_key = 6): hot");
    // Somebody gives up the first of those that wait, which is never called.
    let first = "SELECT event_id FROM outbox.open WHERE state = 'blocked' ORDER BY n LIMIT 1";
    let cancelled: i64 = text(&session, first).await.parse().unwrap();
    assert_eq!(text(&session, &format!("SELECT outbox.cancel({cancelled}, 'h')")).await, "true");
    calls.open();
    all_done(&session, BACKLOG + 999).await;
    assert_eq!((calls.most("hot"), calls.succeeded("hot")), (6, BACKLOG - 1));
    assert!(!calls.log.lock().unwrap().succeeded["hot"].contains(&cancelled));
    assert!(calls.most("other") <= 6 && calls.most("third") <= 6);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_do_many_keys_of_which_none_has_much() {
    let (database, calls) = (Database::new().await, Calls::new());
    let session = database.session().await;
    let query = "INSERT INTO outbox.event (topic, key, payload)
                 SELECT 'a', 'hot' || k, '{}' FROM generate_series(1, 40) k, generate_series(1, 150)";
    session.client.batch_execute(query).await.unwrap();
    insert(&session, "other", 500).await;
    let config = DeliveryConfig { concurrency: 82, ..per_key(2) };
    let running = Running::start(daemon(&database).handler_with("h", config, calls.handler(0))).await;
    until("the others are done", async || calls.succeeded("other") == 500).await;
    for key in 1..=40 {
        assert_eq!(calls.running(&format!("hot{key}")), 2);
    }
    calls.open();
    all_done(&session, 6500).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_gives_its_place_to_the_next_and_no_more_than_may_run() {
    let (database, calls) = (Database::new().await, Calls::new());
    let session = database.session().await;
    calls.open();
    for _ in 0..10 {
        for key in ["hot", "b", "c"] {
            insert(&session, key, 100).await;
        }
    }
    let running = Running::start(daemon(&database).handler_with("h", per_key(2), calls.handler(3))).await;
    all_done(&session, 3000).await;
    for key in ["hot", "b", "c"] {
        assert_eq!(calls.succeeded(key), 1000, "{key}");
        assert!(calls.most(key) <= 2, "{key}");
    }
    running.stop().await;

    // One that is to run again in an hour does not keep the others from running.
    let retry = RetryPolicy { base: Duration::from_hours(1), max: Duration::from_hours(1), ..RetryPolicy::default() };
    let fails = |attempt: Attempt| async move {
        let failure = Failure::new("not today");
        if attempt.event.payload == "1" { Outcome::Retry { after: None, failure } } else { Outcome::done() }
    };
    let config = DeliveryConfig { retry, ..per_key(1) };
    let running = Running::start(daemon(&database).handler_with("h", config, fails)).await;
    let insert =
        "INSERT INTO outbox.event (topic, key, payload) SELECT 'a', 'k', to_jsonb(n) FROM generate_series(1, 3) n";
    session.client.batch_execute(insert).await.unwrap();
    let states = "SELECT string_agg(state, ' ' ORDER BY event_id) FROM (
                      SELECT event_id, state FROM outbox.delivery ORDER BY event_id DESC LIMIT 3) x";
    until("the others are done", async || text(&session, states).await == "retrying done done").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_key_is_found_again_after_a_crash() {
    let (database, calls) = (Database::new().await, Calls::new());
    let session = database.session().await;
    insert(&session, "hot", 1000).await;
    insert(&session, "other", 1).await;
    // What has not begun is no retry, and not limited like one.
    let retry = RetryPolicy { rate: Some(1), concurrency: Some(1), ..per_key(2).retry };
    let config = DeliveryConfig { retry, ..per_key(2) };
    let start = async || Running::start(daemon(&database).handler_with("h", config.clone(), calls.handler(0))).await;
    let running = start().await;
    until("some wait with a row", async || text(&session, "SELECT blocked > 500 FROM outbox.backlog").await == "true")
        .await;
    running.kill().await;
    calls.log.lock().unwrap().running.clear();
    let running = start().await;
    calls.open();
    all_done(&session, 1001).await;
    assert_eq!((calls.succeeded("hot"), calls.most("hot")), (1000, 2));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_may_begin_and_cease_to_count_and_order_its_keys() {
    let (database, calls) = (Database::new().await, Calls::new());
    let session = database.session().await;
    let mut expected = 0;
    let plain = DeliveryConfig { concurrency_per_key: None, ..per_key(1) };
    let ordered = DeliveryConfig { ordered: Some(OnDeadKey::Block), ..plain.clone() };
    for (before, after) in
        [(per_key(1), plain.clone()), (per_key(1), ordered.clone()), (ordered, per_key(2)), (plain, per_key(2))]
    {
        insert(&session, "hot", 600).await;
        expected += 600;
        let waiting = if before.concurrency_per_key.is_some() { "blocked > 300" } else { "running > 0" };
        let lasts = DeliveryConfig { record: outboxd::config::Record::Start, ..before };
        let running = Running::start(daemon(&database).handler_with("h", lasts, calls.handler(0))).await;
        let query = format!("SELECT {waiting} FROM outbox.backlog");
        until("some wait", async || text(&session, &query).await == "true").await;
        running.kill().await;
        calls.log.lock().unwrap().running.clear();
        let running = Running::start(daemon(&database).handler_with("h", after, calls.handler(0))).await;
        calls.hot.add_permits(600 + 8);
        all_done(&session, expected).await;
        running.stop().await;
        calls.hot.forget_permits(usize::MAX);
    }
    let blocked = "SELECT count(*) FROM outbox.open";
    assert_eq!(text(&session, blocked).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_a_flow_counts_its_keys_too() {
    let (database, calls) = (Database::new().await, Calls::new());
    let session = database.session().await;
    let flow = Flow::new("order", ["#"]).step_with("charge", &[], per_key(2), calls.handler(0)).step(
        "tell",
        &["charge"],
        async |_| Outcome::done(),
    );
    let running = Running::start(daemon(&database).flow(flow)).await;
    insert(&session, "hot", 300).await;
    insert(&session, "other", 50).await;
    until("the others are done", async || calls.succeeded("other") == 50).await;
    assert_eq!((calls.running("hot"), calls.succeeded("hot")), (2, 0));
    let waits = "SELECT count(*) FILTER (WHERE state = 'blocked') > 0 FROM outbox.open WHERE handler = 'order/charge'";
    until("steps wait with a row", async || text(&session, waits).await == "true").await;
    calls.open();
    let done = "SELECT count(*) FROM outbox.done WHERE handler = 'order' AND outcome = 'done'";
    until("all are done", async || text(&session, done).await == "350").await;
    assert_eq!((calls.succeeded("hot"), calls.most("hot")), (300, 2));
    let left = texts(&session, "SELECT handler || ' ' || state FROM outbox.open").await;
    assert!(left.is_empty(), "{left:?}");
    running.stop().await;
}
