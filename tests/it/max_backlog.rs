//! A backlog has a bound if somebody asks for one: then a topic takes no more events until there is room again.

use outboxd::config::{DeliveryConfig, MaxBacklog};
use outboxd::postgres::Session;
use outboxd::{CancellationToken, Event, Observation};

use crate::harness::{Database, Login, Running, daemon, done, text, until};

fn limited(topics: &[&str], events: u32, refuses: bool) -> DeliveryConfig {
    let topics = topics.iter().map(|topic| topic.parse().unwrap()).collect();
    DeliveryConfig { concurrency: 1, max_backlog: Some(MaxBacklog { events, refuses }), ..DeliveryConfig::new(topics) }
}

/// Inserts in one statement; the SQLSTATE and the message if that is refused.
async fn insert(session: &Session, topic: &str, count: i32) -> Result<(), String> {
    let insert = "INSERT INTO outbox.event (topic, payload) SELECT $1, '{}' FROM generate_series(1, $2)";
    match session.client.execute(insert, &[&topic, &count]).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let error = error.as_db_error().unwrap();
            Err(format!("{} {}", error.code().code(), error.message()))
        }
    }
}

/// A session as an app has it: those of the daemon are let through.
async fn app(database: &Database) -> Session {
    let session = database.session().await;
    session.client.batch_execute("RESET outbox.max_backlog; SET outbox.max_backlog = on").await.unwrap();
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_handler_refuses_its_topics_and_no_others_until_there_is_room() {
    let database = Database::new().await;
    let (session, owner) = (app(&database).await, database.session().await);
    let gate = CancellationToken::new();
    let held = gate.clone();
    let slow = move |_: outboxd::Attempt| held.clone().cancelled_owned();
    let running = Running::start(daemon(&database).handler_with("slow", limited(&["user.*"], 20, true), slow).handler(
        "other",
        ["#"],
        async |_: Event| (),
    ))
    .await;
    insert(&session, "user.a", 19).await.unwrap();
    until("the others are done", async || done(&owner, "other").await.len() == 19).await;
    assert_eq!(running.count(|o| matches!(o, Observation::Full { .. })), 0);
    insert(&session, "user.a", 5).await.unwrap();
    running
        .observed("it is full", |o| *o == Observation::Full { handler: "slow".into(), events: 20, refuses: true })
        .await;
    until("the flag says so", async || text(&owner, "SELECT last_value FROM outbox.bell").await == "3").await;
    let refused = "53400 topic 'user.b' takes no more events: 20 deliveries wait for handler slow";
    assert_eq!(insert(&session, "user.b", 1).await.unwrap_err(), refused);
    // Whatever way it comes, and whoever it comes from; nothing of the statement stays.
    let shop = Login::new(&database, "shop", &["outbox_producer"]).await;
    let producer = shop.session().await;
    producer.client.batch_execute("SET outbox.max_backlog = on").await.unwrap();
    assert_eq!(insert(&producer, "user.b", 3000).await.unwrap_err(), refused);
    let error = producer.client.batch_execute("SELECT outbox.publish('user.b', '{}')").await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "53400");
    assert!(error.hint().unwrap().contains("outboxd doctor"), "{error:?}");
    // Other topics, and whoever must get through.
    insert(&session, "account.a", 3000).await.unwrap();
    producer
        .client
        .batch_execute("BEGIN; SET LOCAL outbox.max_backlog = off; SELECT outbox.publish('user.c', '{}'); COMMIT")
        .await
        .unwrap();
    until("they came through", async || done(&owner, "other").await.len() == 3025).await;
    let stuck = "SELECT concat_ws('|', handler, why, deliveries, detail) FROM outbox.stuck";
    assert_eq!(text(&owner, stuck).await, "slow|full|20|its topics take no more events");
    // A tenth has ended, and the producers are silent again while the daemon is awake.
    gate.cancel();
    running.observed("it is not full", |o| *o == Observation::NotFull { handler: "slow".into() }).await;
    until("the flag says so", async || text(&owner, "SELECT last_value FROM outbox.bell").await != "3").await;
    insert(&session, "user.b", 1).await.unwrap();
    until("all is done", async || done(&owner, "slow").await.len() == 26).await;
    running.stop().await;
    drop(producer);
    shop.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_only_warns_and_one_that_leaves_the_configuration() {
    let database = Database::new().await;
    let (session, owner) = (app(&database).await, database.session().await);
    let gate = CancellationToken::new();
    let builder = |delivery: DeliveryConfig, gate: CancellationToken| {
        daemon(&database).handler_with("slow", delivery, move |_: outboxd::Attempt| gate.clone().cancelled_owned())
    };
    let running = Running::start(builder(limited(&["#"], 5, false), gate.clone())).await;
    insert(&session, "a", 5).await.unwrap();
    running.observed("it is full", |o| matches!(o, Observation::Full { refuses: false, .. })).await;
    until("the flag says so", async || text(&owner, "SELECT last_value FROM outbox.bell").await == "3").await;
    insert(&session, "a", 1).await.unwrap();
    running.kill().await;
    // The next daemon has another limit, and then none.
    let running = Running::start(builder(limited(&["#"], 6, true), gate.clone())).await;
    running.observed("it is full", |o| matches!(o, Observation::Full { refuses: true, events: 6, .. })).await;
    let refuses = async || insert(&session, "a", 1).await.is_err();
    until("it refuses", refuses).await;
    running.kill().await;
    let running = Running::start(builder(DeliveryConfig::new(vec!["#".parse().unwrap()]), gate.clone())).await;
    running.observed("it is not full", |o| matches!(o, Observation::NotFull { .. })).await;
    until("it takes events", async || insert(&session, "a", 1).await.is_ok()).await;
    gate.cancel();
    until("all is done", async || {
        text(&owner, "SELECT count(*) = (SELECT count(*) FROM outbox.event) FROM outbox.done").await == "true"
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemon_writes_is_never_refused() {
    let database = Database::new().await;
    let (session, owner) = (app(&database).await, database.session().await);
    let gate = CancellationToken::new();
    let held = gate.clone();
    let emits = async |_: Event| outboxd::Outcome::Done {
        result: None,
        emit: vec![outboxd::Emit::new("full", serde_json::json!({}))],
    };
    let running = Running::start(
        daemon(&database)
            .handler_with("slow", limited(&["full"], 3, true), move |_: outboxd::Attempt| {
                held.clone().cancelled_owned()
            })
            .handler("emits", ["a"], emits),
    )
    .await;
    insert(&session, "full", 3).await.unwrap();
    running.observed("it is full", |o| matches!(o, Observation::Full { .. })).await;
    until("it refuses", async || insert(&session, "full", 1).await.is_err()).await;
    insert(&session, "a", 10).await.unwrap();
    until("they are done", async || done(&owner, "emits").await.len() == 10).await;
    gate.cancel();
    until("what they emitted, too", async || done(&owner, "slow").await.len() >= 13).await;
    running.stop().await;
}
