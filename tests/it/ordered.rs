//! The order of keys, end to end: one delivery of a key at a time, in the order of the inserts, whatever fails.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::config::{DeliveryConfig, OnDeadKey};
use outboxd::outcome::{Failure, RetryPolicy};
use outboxd::postgres::Session;
use outboxd::{Attempt, DaemonBuilder, Outcome};

use crate::harness::{Database, Running, daemon, text, texts, until};

fn ordered(policy: OnDeadKey, max_attempts: u32) -> DeliveryConfig {
    let (base, max) = (Duration::from_millis(1), Duration::from_millis(20));
    let retry = RetryPolicy { max_attempts, base, max, ..RetryPolicy::default() };
    DeliveryConfig { concurrency: 16, retry, ordered: Some(policy), ..DeliveryConfig::new(vec!["#".parse().unwrap()]) }
}

/// What a handler was called with, and how often two calls of one key overlapped.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    running: BTreeMap<String, i64>,
    overlaps: Vec<(i64, i64)>,
    succeeded: BTreeMap<String, Vec<i64>>,
}

impl Calls {
    fn begin(&self, attempt: &Attempt) {
        let mut log = self.0.lock().unwrap();
        let id = attempt.event.id.0;
        if let Some(other) = log.running.insert(attempt.event.key.clone().unwrap(), id) {
            log.overlaps.push((other, id));
        }
    }

    fn end(&self, attempt: &Attempt, succeeded: bool) {
        let mut log = self.0.lock().unwrap();
        let key = attempt.event.key.clone().unwrap();
        log.running.remove(&key);
        if succeeded {
            log.succeeded.entry(key).or_default().push(attempt.event.id.0);
        }
    }

    /// Fails every third attempt or so, and takes its time.
    fn flaky(&self, builder: DaemonBuilder, policy: OnDeadKey) -> DaemonBuilder {
        let calls = self.clone();
        builder.handler_with("flaky", ordered(policy, 1000), move |attempt| {
            let calls = calls.clone();
            async move {
                calls.begin(&attempt);
                tokio::task::yield_now().await;
                let fails = fastrand::u8(..3) == 0;
                calls.end(&attempt, !fails);
                if fails {
                    Outcome::Retry { after: None, failure: Failure::new("now and then") }
                } else {
                    Outcome::done()
                }
            }
        })
    }

    fn succeeded(&self) -> usize {
        self.0.lock().unwrap().succeeded.values().map(Vec::len).sum()
    }
}

/// Inserts in turns for so many keys; a commit for every round.
async fn insert(session: &Session, rounds: usize, keys: usize) {
    for _ in 0..rounds {
        let query =
            "INSERT INTO outbox.event (topic, key, payload) SELECT 'a', 'k' || n, '{}' FROM generate_series(1, $1) n";
        session.client.execute(query, &[&i32::try_from(keys).unwrap()]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_is_delivered_in_order_one_at_a_time_though_much_fails() {
    let database = Database::new().await;
    let session = database.session().await;
    let calls = Calls::default();
    insert(&session, 10, 20).await;
    let running = Running::start(calls.flaky(daemon(&database), OnDeadKey::Block)).await;
    insert(&session, 30, 20).await;
    until("everything has succeeded", async || calls.succeeded() >= 800).await;
    until("nothing is open", async || text(&session, "SELECT count(*) FROM outbox.open").await == "0").await;
    running.stop().await;
    let log = calls.0.lock().unwrap();
    assert_eq!(log.overlaps, [], "two of a key at a time");
    assert_eq!(log.succeeded.len(), 20);
    for (key, ids) in &log.succeeded {
        assert_eq!(ids.len(), 40, "{key}");
        assert!(ids.is_sorted(), "{key}: {ids:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_survives_a_crash_in_the_middle() {
    let database = Database::new().await;
    let session = database.session().await;
    let calls = Calls::default();
    insert(&session, 40, 10).await;
    for least in [60, 160, 260] {
        let running = Running::start(calls.flaky(daemon(&database), OnDeadKey::Block)).await;
        until("some have succeeded", async || calls.succeeded() >= least).await;
        running.kill().await;
        calls.0.lock().unwrap().running.clear();
    }
    let running = Running::start(calls.flaky(daemon(&database), OnDeadKey::Block)).await;
    let done = "SELECT count(*) FROM outbox.done WHERE outcome = 'done'";
    until("everything is done", async || text(&session, done).await == "400").await;
    running.stop().await;
    let log = calls.0.lock().unwrap();
    assert_eq!(log.overlaps, []);
    for (key, ids) in &log.succeeded {
        // What had succeeded and was not written yet came again, and then again in order: nothing was ever left out.
        let mut expected = ids.clone();
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(expected.len(), 40, "{key}");
        let mut last = 0;
        for &id in ids {
            let next = expected.iter().copied().find(|&other| other > last);
            assert!(id <= last || Some(id) == next, "{key}: {id} came before {next:?} in {ids:?}");
            last = id;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_head_blocks_its_key_until_it_is_redriven_or_discarded_or_lets_it_pass() {
    let database = Database::new().await;
    let session = database.session().await;
    let broken = Arc::new(Mutex::new(true));
    let handle = |broken: &Arc<Mutex<bool>>| {
        let broken = Arc::clone(broken);
        move |attempt: Attempt| {
            let fails = attempt.event.payload.contains("poison") && *broken.lock().unwrap();
            async move {
                let failure = Failure::new("poison");
                if fails { Outcome::Dead { failure } } else { Outcome::done() }
            }
        }
    };
    let running = Running::start(
        daemon(&database).handler_with("blocks", ordered(OnDeadKey::Block, 3), handle(&broken)).handler_with(
            "skips",
            ordered(OnDeadKey::Skip, 3),
            handle(&broken),
        ),
    )
    .await;
    let insert = "INSERT INTO outbox.event (topic, key, payload) VALUES
                  ('a', 'k', '\"poison\"'), ('a', 'k', '2'), ('a', 'k', '3'), ('a', 'other', '4')";
    session.client.batch_execute(insert).await.unwrap();
    let states = |handler: &'static str| {
        let query = format!("SELECT state FROM outbox.delivery WHERE handler = '{handler}' ORDER BY event_id");
        let session = &session;
        async move { texts(session, &query).await.join(" ") }
    };
    until("one key is blocked", async || states("blocks").await == "dead blocked blocked done").await;
    until("one was skipped", async || states("skips").await == "dead done done done").await;
    // Who comes later waits, too.
    session
        .client
        .batch_execute("INSERT INTO outbox.event (topic, key, payload) VALUES ('a', 'k', '5')")
        .await
        .unwrap();
    until("and later ones", async || states("blocks").await == "dead blocked blocked done blocked").await;

    let why = "SELECT detail FROM outbox.stuck WHERE handler = 'blocks' AND why = 'blocked'";
    assert_eq!(text(&session, why).await, "behind another one of its key: k");

    *broken.lock().unwrap() = false;
    let first = text(&session, "SELECT min(id) FROM outbox.event").await;
    text(&session, "SELECT outbox.redrive('blocks')").await;
    until("the redriven one goes first, then the others", async || {
        states("blocks").await == "done done done done done"
    })
    .await;
    let order = "SELECT event_id FROM outbox.done d JOIN outbox.event e ON e.id = d.event_id
                 WHERE handler = 'blocks' AND e.key = 'k' ORDER BY d.started_at";
    assert!(texts(&session, order).await.is_sorted());

    *broken.lock().unwrap() = true;
    let insert = "INSERT INTO outbox.event (topic, key, payload) VALUES ('a', 'k', '\"poison\"'), ('a', 'k', '7')";
    session.client.batch_execute(insert).await.unwrap();
    until("blocked again", async || states("blocks").await.ends_with("dead blocked")).await;
    let dead = text(&session, "SELECT event_id FROM outbox.open WHERE handler = 'blocks' AND state = 'dead'").await;
    assert_eq!(text(&session, &format!("SELECT outbox.discard({dead}, 'blocks', 'not needed')")).await, "true");
    until("the next one goes on", async || states("blocks").await.ends_with("discarded done")).await;
    text(&session, &format!("SELECT outbox.retry({first}, 'skips')")).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_may_begin_and_cease_to_keep_the_order() {
    let database = Database::new().await;
    let session = database.session().await;
    let fails = |attempt: Attempt| async move {
        let failure = Failure::new("no");
        if attempt.event.payload == "1" { Outcome::Dead { failure } } else { Outcome::done() }
    };
    let running = Running::start(daemon(&database).handler_with("h", ordered(OnDeadKey::Block, 1), fails)).await;
    let insert = "INSERT INTO outbox.event (topic, key, payload) VALUES ('a', 'k', '1'), ('a', 'k', '2')";
    session.client.batch_execute(insert).await.unwrap();
    let states = "SELECT string_agg(state, ' ' ORDER BY event_id) FROM outbox.delivery";
    until("blocked", async || text(&session, states).await == "dead blocked").await;
    running.stop().await;
    let without = DeliveryConfig { ordered: None, ..ordered(OnDeadKey::Block, 1) };
    let running = Running::start(daemon(&database).handler_with("h", without, fails)).await;
    until("not any more", async || text(&session, states).await == "dead done").await;
    running.stop().await;
}
