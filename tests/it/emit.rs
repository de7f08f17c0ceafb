//! A success emits further events: exactly if the delivery is done, by every kind of handler, and one can see what came of what.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use outboxd::config::{DeliveryConfig, Record};
use outboxd::postgres::Session;
use outboxd::{Attempt, Emit, Event, Observation, Outcome, RetryPolicy};
use serde_json::{Value, json};

use crate::handlers::start;
use crate::harness::{Database, Running, daemon, deliveries, outboxd_output, publish, text, texts, until};

fn config(topic: &str) -> DeliveryConfig {
    let (base, max) = (Duration::from_millis(1), Duration::from_millis(1));
    let retry = RetryPolicy { max_attempts: 2, base, max, ..RetryPolicy::default() };
    DeliveryConfig { retry, ..DeliveryConfig::new(vec![topic.parse().unwrap()]) }
}

fn emits(emit: Vec<Emit>) -> Outcome {
    Outcome::Done { result: None, emit }
}

/// `id topic correlation causation` of everything that came of an event.
async fn story(session: &Session, event: i64) -> Vec<String> {
    let query = "SELECT concat_ws(' ', id, topic, coalesce(headers->>'correlation_id', '-'), coalesce(headers->>'causation_id', '-')) FROM outbox.related";
    texts(session, &format!("{query}({event})")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_leads_to_the_next_and_one_query_shows_them_all() {
    let database = Database::new().await;
    let session = database.session().await;
    let pay = async |event: Event| {
        let paid = Emit::new("order.paid", json!({ "of": event.id.0 })).key("k1").header("tenant", "t1");
        emits(vec![paid, Emit::new("mail.wanted", json!("thanks"))])
    };
    let ship = async |_: Event| emits(vec![Emit::new("order.shipped", Value::Null).delay(Duration::from_hours(1))]);
    let running = Running::start(
        daemon(&database).handler("pay", ["order.placed"], pay).handler("ship", ["order.paid"], ship).handler(
            "mail",
            ["mail.*", "order.shipped"],
            async |_: Event| (),
        ),
    )
    .await;
    publish(&session, "something.else").await;
    let placed =
        "SELECT outbox.publish('order.placed', '{}', headers => '{\"traceparent\": \"00-1\", \"other\": \"x\"}')";
    session.client.batch_execute(placed).await.unwrap();
    until("the last one waits for its time", async || {
        texts(&session, "SELECT state FROM outbox.open").await == ["scheduled"]
    })
    .await;
    let all = ["2 order.placed - -", "3 order.paid 2 2", "4 mail.wanted 2 2", "5 order.shipped 2 3"];
    for event in 2..=5 {
        assert_eq!(story(&session, event).await, all, "asked for {event}");
    }
    assert_eq!(story(&session, 1).await, ["1 something.else - -"]);
    let shown = |event: &'static str| {
        let database = &database;
        async move {
            let output = outboxd_output(Some(database), &["show", event]).await;
            String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        }
    };
    let has = async |event, line: &str| {
        let shown = shown(event).await;
        assert!(shown.iter().any(|shown| shown == line), "{line}: {shown:#?}");
    };
    has("2", "emitted    3 order.paid, 4 mail.wanted").await;
    has("3", "came of    2").await;
    has("3", "emitted    5 order.shipped").await;
    has("5", "came of    3, and first of 2").await;
    let row =
        session.client.query_one("SELECT key, payload, headers FROM outbox.event WHERE id = 3", &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, Value>(1)), ("k1", json!({ "of": 2 })));
    let headers = json!({ "tenant": "t1", "correlation_id": "2", "causation_id": "2", "traceparent": "00-1" });
    assert_eq!(row.get::<_, Value>(2), headers);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apps_own_correlation_goes_through() {
    let database = Database::new().await;
    let session = database.session().await;
    let next = async |event: Event| if event.topic == "a" { emits(vec![Emit::new("b", 1)]) } else { emits(vec![]) };
    let running = Running::start(daemon(&database).handler("next", ["#"], next)).await;
    let placed = "SELECT outbox.publish('a', '{}', headers => '{\"correlation_id\": \"request-7\"}')";
    session.client.batch_execute(placed).await.unwrap();
    until("both are done", async || text(&session, "SELECT count(*) FROM outbox.done").await == "2").await;
    for event in 1..=2 {
        assert_eq!(story(&session, event).await, ["1 a request-7 -", "2 b request-7 1"]);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_handler_emits() {
    const ANSWER: &str =
        r#"{"outcome": "done", "result": 7, "emit": [{"topic": "next", "payload": {"by": "KIND"}, "key": "k"}]}"#;
    let database = Database::new().await;
    let session = database.session().await;
    let of = |kind: &str| ANSWER.replace("KIND", kind);
    let function = format!(
        "CREATE SCHEMA app; CREATE FUNCTION app.emits(outbox.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{}'::jsonb $$",
        of("sql")
    );
    session.client.batch_execute(&function).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = of("http");
    let router = Router::new().fallback(async move || ([(CONTENT_TYPE, "application/json")], answer));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let config = format!(
        "[handler.http]\ntopics = [\"a\"]\nhttp.url = \"{url}\"\n\
         [handler.command]\ntopics = [\"a\"]\ncommand = [\"/bin/echo\", '{}']\n\
         [handler.sql]\ntopics = [\"a\"]\nsql = \"app.emits\"\n",
        of("command")
    );
    let running = start(&database, &config).await;
    publish(&session, "a").await;
    let emitted = "SELECT payload->>'by' || ' ' || key || ' ' || (headers->>'causation_id') FROM outbox.event WHERE topic = 'next' ORDER BY 1";
    until("each has emitted", async || texts(&session, emitted).await == ["command k 1", "http k 1", "sql k 1"]).await;
    assert_eq!(texts(&session, "SELECT DISTINCT result::text FROM outbox.done").await, ["7"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_emitted_is_a_failure_that_says_why() {
    let database = Database::new().await;
    let session = database.session().await;
    let good = || Emit::new("good", 1);
    let cases: Vec<(&str, Vec<Emit>, &str)> = vec![
        ("many", vec![good(); 101], "it emits 101 events; at most 100 are emitted"),
        ("topic", vec![good(), Emit::new("two words", 1)], "emit[1]: its topic is \"two words\""),
        ("pattern", vec![Emit::new("a.*", 1)], "emit[0]: its topic is \"a.*\""),
        ("key", vec![good().key("a\nb")], "emit[0]: its key is \"a\\nb\""),
        ("dedup", vec![good().dedup_key("")], "emit[0]: its dedup_key is \"\""),
        ("nul", vec![Emit::new("good", "a\0b")], "emit[0]: its payload holds a NUL"),
        ("large", vec![Emit::new("good", "x".repeat(1_048_576))], "emit[0]: its payload has 1048578 bytes"),
        ("headers", vec![good().header("h", "x".repeat(32_768))], "emit[0]: its headers have 32769 bytes"),
        ("header", vec![good().header("h", "\0")], "emit[0]: its header \"h\" holds a NUL"),
    ];
    let mut builder = daemon(&database);
    for (name, emit, _) in &cases {
        let emit = emit.clone();
        builder = builder.handler_with(*name, config("a"), move |_: Attempt| std::future::ready(emits(emit.clone())));
    }
    let running = Running::start(builder).await;
    publish(&session, "a").await;
    for (name, _, error) in &cases {
        until(&format!("{name} is dead"), async || deliveries(&session, 1).await.contains(&format!("{name}|dead|2")))
            .await;
        let said = text(&session, &format!("SELECT last_error FROM outbox.open WHERE handler = '{name}'")).await;
        assert!(said.starts_with(error), "{name}: {said}");
    }
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event WHERE topic = 'good'").await, "0");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_emits_in_a_wrong_way_says_what_is_wrong() {
    let database = Database::new().await;
    let session = database.session().await;
    let cases = [
        ("list", r#"{"topic": "b"}"#, "the answer's \"emit\" is {\"topic\": \"b\"}; it must be an array of objects"),
        ("nameless", r#"[{"payload": 1}]"#, "the answer's emit[0] has no topic"),
        ("unknown", r#"[{"topic": "b", "when": 1}]"#, "the answer's emit[0] has the key \"when\""),
        (
            "key",
            r#"[{"topic": "b"}, {"topic": "b", "key": 7}]"#,
            "the answer's emit[1] has the key 7; it must be a text",
        ),
        ("headers", r#"[{"topic": "b", "headers": {"a": 1}}]"#, "the answer's emit[0] has the headers {\"a\": 1}"),
        ("delay", r#"[{"topic": "b", "delay": "soon"}]"#, "the answer's emit[0] has the delay \"soon\""),
    ];
    let handler = |(name, emit, _): &(&str, &str, &str)| {
        format!(
            "[handler.{name}]\ntopics = [\"a\"]\nretry.max_attempts = 1\ncommand = [\"/bin/echo\", '{{\"outcome\": \"done\", \"emit\": {emit}}}']\n"
        )
    };
    let running = start(&database, &cases.iter().map(handler).collect::<String>()).await;
    publish(&session, "a").await;
    for (name, _, error) in cases {
        until("it is dead", async || deliveries(&session, 1).await.contains(&format!("{name}|dead|1"))).await;
        let said = text(&session, &format!("SELECT last_error FROM outbox.open WHERE handler = '{name}'")).await;
        assert!(said.starts_with(error), "{name}: {said}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_emitted_by_an_attempt_that_does_not_count() {
    let database = Database::new().await;
    let session = database.session().await;
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&go);
    let slow = move |_: Attempt| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            emits(vec![Emit::new("b", 1)])
        }
    };
    let running = Running::start(daemon(&database).handler_with(
        "slow",
        DeliveryConfig { record: Record::Start, ..config("a") },
        slow,
    ))
    .await;
    let taken = publish(&session, "a").await;
    until("it runs", async || deliveries(&session, taken).await == ["slow|running|1"]).await;
    let complete = format!("SELECT outbox.complete({taken}, 'slow', '\"by hand\"')");
    assert_eq!(text(&session, &complete).await, "true");
    go.add_permits(1);
    running.observed("it is refused", |o| matches!(o, Observation::Refused { .. })).await;
    let counts = publish(&session, "a").await;
    go.add_permits(1);
    until("the other one is done", async || deliveries(&session, counts).await == ["slow|done|1"]).await;
    let emitted = "SELECT headers->>'causation_id' FROM outbox.event WHERE topic = 'b'";
    assert_eq!(texts(&session, emitted).await, [counts.to_string()]);
    assert_eq!(text(&session, "SELECT result::text FROM outbox.done ORDER BY event_id").await, "\"by hand\"");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_dedup_key_it_is_emitted_once() {
    let database = Database::new().await;
    let session = database.session().await;
    let index = async |event: Event| {
        let refresh = |key: &str| Emit::new("index.refresh", json!({ "by": event.id.0 })).dedup_key(key).key("k");
        if event.topic == "a" { emits(vec![refresh("one"), refresh("one"), refresh("two")]) } else { emits(vec![]) }
    };
    let running = Running::start(daemon(&database).handler("index", ["#"], index)).await;
    for _ in 0..3 {
        publish(&session, "a").await;
    }
    until("all are done", async || text(&session, "SELECT count(*) FROM outbox.done").await == "5").await;
    let emitted = "SELECT dedup_key FROM outbox.event WHERE topic = 'index.refresh' ORDER BY id";
    assert_eq!(texts(&session, emitted).await, ["one", "two"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_delivery_is_told_once_however_it_comes_and_that_of_the_telling_event_is_not() {
    let database = Database::new().await;
    let session = database.session().await;
    let function = "CREATE SCHEMA app;
        CREATE FUNCTION app.takes(outbox.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{\"sum\": 3}'::jsonb $$";
    session.client.batch_execute(function).await.unwrap();
    let on_done = |name: &str| DeliveryConfig { on_done: Some(format!("told.{name}")), ..config("a") };
    let waits = DeliveryConfig { callback: true, record: Record::Start, ..on_done("waits") };
    let everything = DeliveryConfig { topics: vec!["#".parse().unwrap()], ..on_done("rust") };
    let file = "[handler.sql]\ntopics = [\"a\"]\nsql = \"app.takes\"\non_done = \"told.sql\"\n";
    let builder = daemon(&database).config(outboxd::Config::parse(file, "f", &|_| None).unwrap());
    let seen = Arc::new(Mutex::new(0));
    let count = Arc::clone(&seen);
    let rust = move |_: Attempt| {
        *count.lock().unwrap() += 1;
        std::future::ready(Outcome::done_with(json!("ok")))
    };
    let builder = builder
        .handler_with("rust", everything, rust)
        .handler_with("waits", waits, async |_: Attempt| Outcome::Wait { timeout: None });
    let running = Running::start(builder).await;
    session.client.batch_execute("SELECT outbox.publish('a', '{\"n\": 1}', key => 'k')").await.unwrap();
    until("it waits", async || deliveries(&session, 1).await.contains(&"waits|waiting|1".to_owned())).await;
    session.client.batch_execute("SELECT outbox.complete(1, 'waits', '\"late\"')").await.unwrap();
    // The one that takes everything takes the three that tell, too, and is not told of that.
    until("all is done", async || text(&session, "SELECT count(*) FROM outbox.done").await == "6").await;
    let told = session
        .client
        .query("SELECT topic, key, payload, headers FROM outbox.event WHERE topic LIKE 'told.%' ORDER BY topic", &[])
        .await
        .unwrap();
    assert_eq!(told.len(), 3);
    for (row, (handler, result)) in
        told.iter().zip([("rust", json!("ok")), ("sql", json!({ "sum": 3 })), ("waits", json!("late"))])
    {
        assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), (&*format!("told.{handler}"), "k"));
        let payload = json!({ "event_id": 1, "handler": handler, "topic": "a", "key": "k", "attempts": 1,
                              "result": result, "payload": { "n": 1 } });
        assert_eq!(row.get::<_, Value>(2), payload);
        let headers = json!({ "outbox-done-of": "1", "correlation_id": "1", "causation_id": "1" });
        assert_eq!(row.get::<_, Value>(3), headers);
    }
    assert_eq!(*seen.lock().unwrap(), 4);
    running.stop().await;
}
