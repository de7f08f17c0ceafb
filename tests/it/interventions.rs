//! What happens to a delivery from outside, and what it does to itself: cancelled, answered later, recorded before it begins.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::config::DeliveryConfig;
use outboxd::outcome::{Failure, RetryPolicy};
use outboxd::{Attempt, Observation, Outcome};

use crate::harness::{
    ConfigFile, Database, Gate, Process, Running, daemon, deliveries, lives, publish, publish_many, text, texts, until,
};

fn config(concurrency: usize) -> DeliveryConfig {
    let topics = vec!["a".parse().unwrap()];
    DeliveryConfig { concurrency, timeout: Duration::from_hours(1), ..DeliveryConfig::new(topics) }
}

/// Counts those that were dropped before they ended.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_delivery_does_not_begin_and_its_running_attempt_ends() {
    let database = Database::new().await;
    let session = database.session().await;
    let dropped = Arc::new(AtomicUsize::new(0));
    let begun = Arc::new(Mutex::new(Vec::new()));
    let hangs = {
        let (dropped, begun) = (Arc::clone(&dropped), Arc::clone(&begun));
        move |attempt: Attempt| {
            begun.lock().unwrap().push(attempt.event.id.0);
            let guard = Dropped(Arc::clone(&dropped));
            async move {
                if attempt.event.topic == "a" {
                    std::future::pending::<()>().await;
                }
                std::mem::forget(guard);
            }
        }
    };
    let both = DeliveryConfig { topics: vec!["#".parse().unwrap()], ..config(1) };
    let running = Running::start(daemon(&database).handler_with("one", both, hangs)).await;
    let events = publish_many(&session, "a", 3).await;
    until("the first one runs", async || *begun.lock().unwrap() == events[..1]).await;
    let cancel = async |event: i64| text(&session, &format!("SELECT outbox.cancel({event}, 'one', 'wrong')")).await;
    // In the queue, then running without a row or with one.
    assert_eq!(cancel(events[1]).await, "true");
    assert_eq!(cancel(events[0]).await, "true");
    until("the first one has ended, the third one runs", async || *begun.lock().unwrap() == [events[0], events[2]])
        .await;
    until("it has a row", async || deliveries(&session, events[2]).await == ["one|running|1"]).await;
    assert_eq!(cancel(events[2]).await, "true");
    assert_eq!(cancel(events[2]).await, "false", "it is");
    let last = publish(&session, "b").await;
    until("the slot is free", async || deliveries(&session, last).await == ["one|done|1"]).await;
    assert_eq!(dropped.load(Ordering::Relaxed), 2);
    let states = texts(&session, "SELECT state FROM outbox.delivery ORDER BY event_id").await;
    assert_eq!(states, ["cancelled", "cancelled", "cancelled", "done"]);
    until("the attempts are kept", async || {
        texts(&session, "SELECT outcome FROM outbox.attempt ORDER BY event_id").await == ["cancelled", "cancelled"]
    })
    .await;
    assert_eq!(running.count(|o| matches!(o, Observation::Cancelled { .. })), 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_of_a_cancelled_command_is_killed() {
    let (database, gate) = (Database::new().await, Gate::closed());
    let session = database.session().await;
    let file = ConfigFile::new(&format!("[handler.slow]\ntopics = [\"#\"]\n{}", gate.command()));
    let daemon = Process::run(&database, &file);
    daemon.logged("leading").await;
    let event = publish(&session, "a").await;
    gate.begun(1).await;
    let pid = gate.last_pid();
    assert_eq!(text(&session, &format!("SELECT outbox.cancel({event}, 'slow')")).await, "true");
    until("it is gone", async || !lives(pid)).await;
    daemon.logged("cancelled while it ran event=1 handler=slow").await;
    assert_eq!(deliveries(&session, event).await[0].split('|').nth(1), Some("cancelled"));
}

#[tokio::test]
async fn the_log_tells_of_what_waits_and_of_what_has_expired() {
    let database = Database::new().await;
    let session = database.session().await;
    let file = ConfigFile::new(
        "[handler.asks]\ntopics = [\"#\"]\ncommand = [\"/bin/echo\", '{\"outcome\": \"wait\", \"timeout\": \"1h\"}']\n",
    );
    let daemon = Process::run(&database, &file);
    daemon.logged("leading").await;
    let insert =
        "SELECT outbox.publish('a', '{}'), outbox.publish('a', '{}', expires_at => now() - interval '1 second')";
    session.client.batch_execute(insert).await.unwrap();
    daemon.logged("waits for an answer event=1 handler=asks attempt=1 timeout_s=3600").await;
    daemon.logged("expired before it ran event=2 handler=asks").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_come_later_and_one_that_does_not_come_is_a_failure() {
    let database = Database::new().await;
    let session = database.session().await;
    let waits = |attempt: Attempt| async move {
        // The third event gives up soon, but only the first time.
        let soon = attempt.event.payload == "3" && attempt.number == 1;
        Outcome::Wait { timeout: Some(if soon { Duration::from_millis(100) } else { Duration::from_hours(1) }) }
    };
    let (base, max) = (Duration::from_millis(1), Duration::from_millis(1));
    let retry = RetryPolicy { max_attempts: 3, base, max, ..RetryPolicy::default() };
    let running =
        Running::start(daemon(&database).handler_with("asks", DeliveryConfig { retry, ..config(8) }, waits)).await;
    let insert = "INSERT INTO outbox.event (topic, payload) SELECT 'a', to_jsonb(n) FROM generate_series(1, 3) n";
    session.client.batch_execute(insert).await.unwrap();
    let states = "SELECT state || ' ' || attempts FROM outbox.delivery ORDER BY event_id";
    until("all wait, the third one again", async || {
        texts(&session, states).await == ["waiting 1", "waiting 1", "waiting 2"]
    })
    .await;
    let error = text(&session, "SELECT last_error || ' ' || failures FROM outbox.open WHERE event_id = 3").await;
    assert_eq!(error, "no answer came within the time 1");
    assert_eq!(text(&session, "SELECT outbox.complete(1, 'asks', '{\"paid\": true}')").await, "true");
    assert_eq!(text(&session, "SELECT outbox.complete(1, 'asks', '{\"paid\": false}')").await, "false", "too late");
    assert_eq!(text(&session, "SELECT outbox.fail(2, 'asks', 'declined')").await, "true");
    until("one is done, one was asked again", async || {
        texts(&session, states).await == ["done 1", "waiting 2", "waiting 2"]
    })
    .await;
    assert_eq!(text(&session, "SELECT result FROM outbox.done").await, "{\"paid\": true}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_ends_the_daemon_is_counted_and_ends_up_dead() {
    let database = Database::new().await;
    let session = database.session().await;
    let file = ConfigFile::new(
        "[handler.poisoned]\ntopics = [\"a\"]\nrecord = \"start\"\nconcurrency = 1\nretry = { max_attempts = 3, base = \"1ms\", max = \"1ms\" }\n\
         command = [\"/bin/sh\", \"-c\", 'case $OUTBOX_KEY in poison) kill -9 $PPID;; esac']\n",
    );
    let insert = "INSERT INTO outbox.event (topic, key, payload) VALUES ('a', 'poison', '1'), ('a', 'good', '2')";
    session.client.batch_execute(insert).await.unwrap();
    for _ in 0..3 {
        let mut daemon = Process::run(&database, &file);
        daemon.ended().await;
    }
    let daemon = Process::run(&database, &file);
    daemon.logged("leading").await;
    let states = "SELECT state || ' ' || attempts FROM outbox.delivery ORDER BY event_id";
    until("the other one is done", async || texts(&session, states).await[1].starts_with("done")).await;
    assert_eq!(texts(&session, states).await[0], "dead 3");
    let history = texts(&session, "SELECT outcome FROM outbox.attempt WHERE event_id = 1 ORDER BY attempt").await;
    assert_eq!(history, ["lost", "lost", "lost"]);
}

/// Retries that never end, and first tries: neither keeps the other from running.
#[tokio::test(flavor = "multi_thread")]
async fn retries_have_a_share_of_their_own() {
    let database = Database::new().await;
    let session = database.session().await;
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let retried = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (most, now, retried) = (Arc::clone(&most), Arc::clone(&now), Arc::clone(&retried));
        move |attempt: Attempt| {
            let (most, now, retried) = (Arc::clone(&most), Arc::clone(&now), Arc::clone(&retried));
            async move {
                if attempt.number == 1 && attempt.event.payload != "\"fails\"" {
                    return Outcome::done();
                }
                if attempt.number > 1 {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    retried.fetch_add(1, Ordering::SeqCst);
                }
                Outcome::Retry { after: Some(Duration::ZERO), failure: Failure::new("always") }
            }
        }
    };
    let retry = RetryPolicy { max_attempts: 1_000_000, concurrency: Some(2), ..RetryPolicy::default() };
    let running =
        Running::start(daemon(&database).handler_with("mixed", DeliveryConfig { retry, ..config(8) }, handler)).await;
    let insert = "INSERT INTO outbox.event (topic, payload) SELECT 'a', '\"fails\"' FROM generate_series(1, 200)";
    session.client.batch_execute(insert).await.unwrap();
    until("they are retried", async || retried.load(Ordering::SeqCst) > 200).await;
    let done = "SELECT count(*) FROM outbox.done";
    for round in 1..=5 {
        let before = retried.load(Ordering::SeqCst);
        publish_many(&session, "a", 500).await;
        until("first tries are not kept waiting", async || text(&session, done).await == (round * 500).to_string())
            .await;
        until("nor are retries", async || retried.load(Ordering::SeqCst) > before).await;
    }
    assert!(most.load(Ordering::SeqCst) <= 2, "{most:?} retries at the same time");
    running.stop().await;
}
