//! The main promise: an inserted row reaches every handler that wants it, and its state comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use outboxd::config::DeliveryConfig;
use outboxd::{Event, Failure, Outcome, RetryPolicy};

use crate::harness::{Database, Running, daemon, until};

/// `handler|state|attempts` of every delivery of an event, sorted.
async fn deliveries(session: &outboxd::postgres::Session, event: i64) -> Vec<String> {
    let rows = session
        .client
        .query(
            "SELECT handler || '|' || state || '|' || attempts FROM outbox.delivery WHERE event_id = $1 ORDER BY 1",
            &[&event],
        )
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_insert_runs_each_handler_once_and_a_broken_one_harms_nobody() {
    let database = Database::new().await;
    let calls: Arc<[AtomicU32; 4]> = Arc::default();
    let counting = |i: usize| {
        let calls = Arc::clone(&calls);
        move |_: Event| {
            calls[i].fetch_add(1, Ordering::SeqCst);
            async {}
        }
    };
    let retry = RetryPolicy {
        max_attempts: 3,
        base: Duration::from_millis(1),
        max: Duration::from_millis(5),
        ..RetryPolicy::default()
    };
    let broken = DeliveryConfig { retry, ..DeliveryConfig::new(vec!["user.#".parse().unwrap()]) };
    let running = Running::start(
        daemon(&database)
            .handler("mail", ["user.registered"], counting(0))
            .handler("profile", ["user.*"], counting(1))
            .handler("audit", ["#"], counting(2))
            .handler("other", ["order.*"], counting(3))
            .handler_with("broken", broken, async |_| Outcome::Retry { after: None, failure: Failure::new("no") }),
    )
    .await;
    let session = database.session().await;
    let event: i64 = session
        .client
        .query_one("SELECT outbox.publish('user.registered', '{\"name\": \"Ada\"}')", &[])
        .await
        .unwrap()
        .get(0);
    until("broken is dead and the others are done", async || {
        deliveries(&session, event).await == ["audit|done|1", "broken|dead|3", "mail|done|1", "profile|done|1"]
    })
    .await;
    assert_eq!(calls.each_ref().map(|c| c.load(Ordering::SeqCst)), [1, 1, 1, 0]);
    let attempts =
        session.client.query("SELECT error FROM outbox.attempt WHERE handler = 'broken'", &[]).await.unwrap();
    assert_eq!(attempts.len(), 3);
    running.stop().await;
}
