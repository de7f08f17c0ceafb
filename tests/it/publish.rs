//! `outbox.publish`, and when an event runs: at once, when it is due, by priority, never once it has expired.

use std::sync::{Arc, Mutex};

use outboxd::Event;
use outboxd::config::DeliveryConfig;
use outboxd::event::Attempt;
use tokio::sync::Semaphore;

use crate::handlers::start;
use crate::harness::{Database, Running, daemon, deliveries, publish, ring, text, texts, until};

#[tokio::test]
async fn every_argument_reaches_its_column() {
    let database = Database::new().await;
    let session = database.session().await;
    let publish = "SELECT outbox.publish('a.b', '{\"n\": 1}', key => 'k', dedup_key => 'd', delay => '1 hour', \
                   headers => '{\"h\": \"v\"}', expires_at => '2100-01-01Z', priority => 3::smallint)";
    assert_eq!(text(&session, publish).await, "1");
    let row = "SELECT concat_ws('|', id, topic, payload, key, dedup_key, due_at - created_at BETWEEN '59 min' AND '61 min', \
               headers, expires_at AT TIME ZONE 'UTC', priority) FROM outbox.event";
    let expected = "1|a.b|{\"n\": 1}|k|d|t|{\"h\": \"v\"}|2100-01-01 00:00:00|3";
    assert_eq!(text(&session, row).await, expected);
    // What is left out, or null, is the default.
    text(&session, "SELECT outbox.publish('a', '{}', headers => NULL, priority => NULL)").await;
    let row = "SELECT num_nulls(key, dedup_key, due_at, expires_at) || headers::text || priority FROM outbox.event WHERE id = 2";
    assert_eq!(text(&session, row).await, "4{}0");
}

#[tokio::test]
async fn a_repeated_dedup_key_gives_the_first_id_until_its_window_is_over() {
    let database = Database::new().await;
    let session = database.session().await;
    let again = "SELECT outbox.publish('a', '{}', dedup_key => 'k')";
    let first = text(&session, again).await;
    assert_eq!(text(&session, again).await, first);
    assert_ne!(text(&session, "SELECT outbox.publish('b', '{}', dedup_key => 'k')").await, first);
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event").await, "2");
    session.client.batch_execute("UPDATE outbox.dedup SET expires_at = now()").await.unwrap();
    let second = text(&session, again).await;
    assert_ne!(second, first);
    assert_eq!(text(&session, again).await, second);
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event").await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_keys_are_remembered_is_what_the_configuration_of_the_leader_says() {
    let database = Database::new().await;
    let session = database.session().await;
    let windows = "SELECT concat_ws('|', dedup_window, once_window) FROM outbox.installation";
    for (config, stored) in [
        ("[daemon]\ndedup_window = \"1m\"\nonce_window = \"1h\"", "00:01:00|01:00:00"),
        ("[daemon]\nonce_window = \"1h\"", "24:00:00|01:00:00"),
        ("", "24:00:00|720:00:00"),
    ] {
        let running = start(&database, config).await;
        until("they are stored", async || text(&session, windows).await == stored).await;
        running.stop().await;
    }
    let expires = "SELECT outbox.once('mail', 'a'), outbox.once('mail', 'a')";
    session.client.batch_execute(expires).await.unwrap();
    let kept = "SELECT expires_at BETWEEN now() + '719 h' AND now() + '721 h' FROM outbox.consumed";
    assert_eq!(texts(&session, kept).await, ["true"]);
}

#[tokio::test]
async fn sixteen_publishers_of_one_key_make_one_event() {
    let database = Database::new().await;
    let mut publishers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let session = database.session().await;
        publishers.spawn(async move { text(&session, "SELECT outbox.publish('a', '{}', dedup_key => 'k')").await });
    }
    let ids = publishers.join_all().await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(text(&database.session().await, "SELECT count(*) FROM outbox.event").await, "1");
}

#[tokio::test]
async fn a_key_whose_publisher_rolled_back_is_free() {
    let database = Database::new().await;
    let mut session = database.session().await;
    let transaction = session.client.transaction().await.unwrap();
    transaction.batch_execute("SELECT outbox.publish('a', '{}', dedup_key => 'k')").await.unwrap();
    transaction.rollback().await.unwrap();
    text(&session, "SELECT outbox.publish('a', '{}', dedup_key => 'k')").await;
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_event_waits_for_its_time_and_then_runs() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler("mail", ["#"], async |_: Event| ())).await;
    let delayed: i64 = text(&session, "SELECT outbox.publish('a', '{}', delay => '1 hour')").await.parse().unwrap();
    until("it is scheduled", async || deliveries(&session, delayed).await == ["mail|scheduled|0"]).await;
    let other = publish(&session, "a").await;
    until("others go past it", async || deliveries(&session, other).await == ["mail|done|1"]).await;
    assert_eq!(deliveries(&session, delayed).await, ["mail|scheduled|0"]);
    session.client.batch_execute("UPDATE outbox.open SET due_at = now()").await.unwrap();
    ring(&session).await;
    until("it runs", async || deliveries(&session, delayed).await == ["mail|done|1"]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_event_never_runs() {
    let database = Database::new().await;
    let session = database.session().await;
    let ran = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&ran);
    let handler = move |event: Event| {
        list.lock().unwrap().push(event.id.0);
        async {}
    };
    let running = Running::start(daemon(&database).handler("mail", ["#"], handler)).await;
    let expired: i64 = text(&session, "SELECT outbox.publish('a', '{}', expires_at => now() - interval '1 second')")
        .await
        .parse()
        .unwrap();
    until("it is expired", async || deliveries(&session, expired).await == ["mail|expired|0"]).await;
    // One that expires while it is scheduled.
    let delayed = "SELECT outbox.publish('a', '{}', delay => '1 hour', expires_at => now() + interval '2 hours')";
    let delayed: i64 = text(&session, delayed).await.parse().unwrap();
    until("it is scheduled", async || deliveries(&session, delayed).await == ["mail|scheduled|0"]).await;
    session
        .client
        .batch_execute("UPDATE outbox.open SET due_at = now(), expires_at = now() - interval '1 second'")
        .await
        .unwrap();
    ring(&session).await;
    until("it is expired", async || {
        texts(&session, "SELECT outcome FROM outbox.done ORDER BY event_id").await == ["expired", "expired"]
    })
    .await;
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
    assert!(ran.lock().unwrap().is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_waits_the_higher_priority_runs_first_and_equals_in_their_order() {
    let database = Database::new().await;
    let session = database.session().await;
    let (ran, gate) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(0)));
    let (list, pass) = (Arc::clone(&ran), Arc::clone(&gate));
    let one_at_a_time = DeliveryConfig { concurrency: 1, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let handler = move |attempt: Attempt| {
        list.lock().unwrap().push(attempt.event.topic.clone());
        let pass = Arc::clone(&pass);
        async move { pass.acquire().await.unwrap().forget() }
    };
    let running = Running::start(daemon(&database).handler_with("mail", one_at_a_time, handler)).await;
    publish(&session, "first").await;
    until("the first runs", async || ran.lock().unwrap().len() == 1).await;
    let mixed = "INSERT INTO outbox.event (topic, payload, priority) VALUES \
                 ('low', '{}', -1), ('a', '{}', 0), ('high', '{}', 9), ('b', '{}', 0), ('higher', '{}', 10)";
    session.client.batch_execute(mixed).await.unwrap();
    running.observed("they are read", |o| matches!(o, outboxd::Observation::PageRead { events: 5 })).await;
    gate.add_permits(6);
    until("all ran", async || ran.lock().unwrap().len() == 6).await;
    assert_eq!(*ran.lock().unwrap(), ["first", "higher", "high", "a", "b", "low"]);
    running.stop().await;
}
