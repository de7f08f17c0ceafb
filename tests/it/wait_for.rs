//! Somebody wants to know how an event ends: in SQL, or on the daemon's port.

use std::net::SocketAddr;

use outboxd::Event;
use serde_json::{Value, json};

use crate::callback::{Urls, post, waits};
use crate::harness::{Database, Running, daemon, deliveries, get, publish, text, until};

#[tokio::test(flavor = "multi_thread")]
async fn one_can_wait_for_an_event_in_sql_and_on_the_port() {
    let (database, urls) = (Database::new().await, Urls::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("pay", waits(), urls.handler()).handler(
        "log",
        ["a"],
        async |_: Event| (),
    ))
    .await;
    let address: SocketAddr = running.address().await;
    let event = publish(&session, "a").await;
    until("it waits", async || deliveries(&session, event).await == ["log|done|1", "pay|waiting|1"]).await;
    assert_eq!(text(&session, &format!("SELECT outbox.wait_for({event}, '0 s')")).await, "false");
    let at_once = get(address, &format!("/events/{event}")).await;
    let json = |(status, body): (u16, String)| (status, serde_json::from_str::<Value>(&body).unwrap());
    let delivery = |handler: &str, state: &str, result: Value| json!({ "handler": handler, "state": state, "attempts": 1, "result": result, "last_error": null });
    let expected = |ended: bool, pay: Value| {
        let deliveries = [delivery("log", "done", Value::Null), pay];
        (200, json!({ "event_id": event, "ended": ended, "deliveries": deliveries }))
    };
    assert_eq!(json(at_once), expected(false, delivery("pay", "waiting", Value::Null)));

    let in_sql = database.session().await;
    let (sql, port) = (format!("SELECT outbox.wait_for({event})"), format!("/events/{event}?wait=60s"));
    let (answered, waited, seen) = tokio::join!(
        async {
            // Both have begun to wait, or will find it done: either way they must hear of it.
            post(&urls.last(), "7").await
        },
        text(&in_sql, &sql),
        get(address, &port)
    );
    assert_eq!((answered.0, &*waited), (200, "true"));
    assert_eq!(json(seen), expected(true, delivery("pay", "done", json!(7))));

    let refused = async |sql: &str| {
        let error = session.client.batch_execute(sql).await.unwrap_err();
        let _ = session.client.batch_execute("ROLLBACK").await;
        error.as_db_error().unwrap().message().to_owned()
    };
    let own = "BEGIN; SELECT outbox.wait_for(outbox.publish('a', '1'))";
    assert!(refused(own).await.contains("was inserted in this transaction"));
    assert!(
        refused("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT outbox.wait_for(1)").await.contains("repeatable read")
    );
    assert!(refused("SELECT outbox.wait_for(1, '2 days')").await.contains("from 0 to 1 day"));
    assert_eq!(refused("SELECT outbox.wait_for(999)").await, "there is no event 999, or no more");
    for (path, status) in [("999", 404), ("x", 400), ("1?wait=soon", 400), ("1?wait=2m", 400)] {
        assert_eq!(get(address, &format!("/events/{path}")).await.0, status, "{path}");
    }
    running.stop().await;
}
