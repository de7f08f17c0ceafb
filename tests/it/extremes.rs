//! Events at the limits of the table arrive whole at every kind of handler; beyond them the INSERT is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::HeaderMap;
use outboxd::postgres::Session;

use crate::bounds::memory_peak;
use crate::harness::{ConfigFile, Database, Process, deliveries, text, texts, until};

/// The most memory the daemon may have used, in MiB: 8 MiB of events for each of three handlers, the largest event in the
/// hands of each, and as much again on its way to them.
const MEMORY_MAX: u64 = 512;

const CONFIG: &str = r##"
[handler.http]
topics = ["#"]
http.url = "URL"

[handler.command]
topics = ["#"]
command = ["/bin/sh", "-c", '''
    printf '{"md5": "%s", "trace": "%s", "headers": %s}' \
        $(md5sum | cut -d ' ' -f 1) "$(printf %s "$TRACEPARENT" | tr '\r\n' __)" $(printf %s "${OUTBOX_HEADERS-unset}" | wc -c)''']

[handler.sql]
topics = ["#"]
sql = "app.md5"
"##;

/// The headers and the length of the payload of every request, by event.
type Requests = Arc<Mutex<BTreeMap<i64, (HeaderMap, usize)>>>;

/// The three handlers in a process of their own, and what the web service was sent.
async fn start(database: &Database, session: &Session) -> (Process, Requests) {
    let function = "CREATE SCHEMA app; CREATE FUNCTION app.md5(e outbox.event) RETURNS jsonb LANGUAGE sql \
                    AS $$ SELECT to_jsonb(md5(e.payload::text)) $$";
    session.client.batch_execute(function).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Requests::default();
    let kept = Arc::clone(&requests);
    let take = async move |headers: HeaderMap, body: String| {
        let event = headers["ce-id"].to_str().unwrap().parse().unwrap();
        kept.lock().unwrap().insert(event, (headers, body.len()));
    };
    let router = Router::new().fallback(take).layer(DefaultBodyLimit::disable());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let config = ConfigFile::new(&CONFIG.replace("URL", &url));
    let process = Process::run(database, &config);
    process.logged("leading").await;
    (process, requests)
}

async fn delivered(session: &Session, event: i64) {
    until("it is delivered to all", async || {
        deliveries(session, event).await == ["command|done|1", "http|done|1", "sql|done|1"]
    })
    .await;
}

async fn id(session: &Session, insert: &str) -> i64 {
    session.client.query_one(insert, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_payloads_arrive_whole_and_larger_ones_are_refused() {
    let database = Database::new().await;
    let session = database.session().await;
    let (mut process, requests) = start(&database, &session).await;
    let many = "INSERT INTO outbox.event (topic, payload) \
                SELECT 'a', to_jsonb(repeat(md5(n::text), 32768)) FROM generate_series(1, 32) AS n";
    session.client.batch_execute(many).await.unwrap();
    // Sixteen MiB less the jsonb's own header; a list of numbers is longer as text.
    let largest = id(&session, "SELECT outbox.publish('a', to_jsonb(repeat('x', 16777216 - 16)))").await;
    let numbers = "SELECT outbox.publish('a', (SELECT jsonb_agg(n) FROM generate_series(1000000, 1999999) n))";
    let numbers = id(&session, numbers).await;
    for bytes in [16_777_216, 100_000_000] {
        let refused = format!("SELECT outbox.publish('a', to_jsonb(repeat('x', {bytes})))");
        let error = session.client.batch_execute(&refused).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().constraint(), Some("payload_is_at_most_16_mebibytes"), "{error:?}");
    }
    delivered(&session, largest).await;
    delivered(&session, numbers).await;
    until("all are delivered", async || text(&session, "SELECT count(*) FROM outbox.done").await == "102").await;
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
    assert_eq!(requests.lock().unwrap()[&largest].1, 16_777_216 - 16 + 2);
    let md5s = "SELECT count(*) FROM outbox.done d JOIN outbox.event e ON e.id = d.event_id \
                WHERE coalesce(d.result ->> 'md5', d.result #>> '{}') = md5(e.payload::text)";
    assert_eq!(text(&session, md5s).await, "68");
    let peak = memory_peak(&process);
    println!("the daemon used {peak} MiB at most");
    assert!(peak < MEMORY_MAX, "{peak} MiB");
    process.signal(rustix::process::Signal::TERM);
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_at_the_limit_arrive_and_none_can_add_another() {
    let database = Database::new().await;
    let session = database.session().await;
    let (_process, requests) = start(&database, &session).await;
    let headers = |count: u32| {
        format!(
            "SELECT outbox.publish('a', '{{}}', headers => \
             (SELECT jsonb_object_agg('h' || n, 'v') FROM generate_series(1, {count}) AS n))"
        )
    };
    let error = session.client.batch_execute(&headers(10_000)).await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().constraint(), Some("headers_are_at_most_64_kibibytes"), "{error:?}");
    let most = id(&session, &headers(4_500)).await;
    delivered(&session, most).await;

    let broken = r#"{"traceparent": "00-1\r\nx-evil: 1", "tracestate": "a\nb", "x: y\r\n": "\r\n\r\nGET / HTTP/1.1"}"#;
    let sql = "SELECT outbox.publish('a', '{}', key => 'ä ö%', headers => $1::text::jsonb)";
    let broken: i64 = session.client.query_one(sql, &[&broken]).await.unwrap().get(0);
    delivered(&session, broken).await;
    let requests = requests.lock().unwrap().clone();
    let (sent, _) = &requests[&broken];
    for name in ["x-evil", "traceparent", "tracestate"] {
        assert!(!sent.contains_key(name), "{sent:?}");
    }
    assert_eq!(sent["ce-subject"], "%C3%A4%20%C3%B6%25");
    assert_eq!(requests[&most].0.len(), sent.len() - 1, "no header of an app but the trace context is sent");
    let result = "SELECT ((result ->> 'headers')::integer > 60000) || ' ' || (result ->> 'trace') FROM outbox.done \
                  WHERE handler = 'command' ORDER BY event_id";
    assert_eq!(texts(&session, result).await, ["true ", "false 00-1__x-evil: 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_at_the_limit_and_deep_payloads_stop_nobody() {
    let database = Database::new().await;
    let session = database.session().await;
    let (_process, _requests) = start(&database, &session).await;
    for (column, value) in [
        ("due_at", "294276-12-31 23:59:59.999999+00"),
        ("expires_at", "294276-12-31 23:59:59.999999+00"),
        ("expires_at", "-infinity"),
        ("created_at", "294276-12-31 23:59:59.999999+00"),
        ("created_at", "-infinity"),
        ("created_at", "4713-01-01 00:00:00+00 BC"),
    ] {
        let insert = format!("INSERT INTO outbox.event (topic, payload, {column}) VALUES ('a', '{{}}', '{value}')");
        let error = session.client.batch_execute(&insert).await.unwrap_err();
        let rule = format!("{column}_is_between_years_1970_and_9999");
        assert_eq!(error.as_db_error().unwrap().constraint(), Some(&*rule), "{value}");
    }
    let deep =
        "INSERT INTO outbox.event (topic, payload) VALUES ('a', (repeat('[', 100000) || repeat(']', 100000))::jsonb)";
    let error = session.client.batch_execute(deep).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("stack depth limit exceeded"), "{error:?}");

    let insert = "INSERT INTO outbox.event (topic, payload, due_at, expires_at, created_at) VALUES";
    let last = "9998-12-31 23:59:59.999999+00";
    let rows = [
        format!("('a', '1', '{last}', NULL, now())"),
        format!("('a', '2', NULL, '{last}', '{last}')"),
        "('a', '3', '1970-01-01Z', '1970-01-01 00:00:01Z', '1970-01-01Z')".to_owned(),
        "('a', (repeat('[', 5000) || repeat(']', 5000))::jsonb, '1970-01-01Z', NULL, '1970-01-01Z')".to_owned(),
    ];
    session.client.batch_execute(&format!("{insert} {}", rows.join(", "))).await.unwrap();
    let states =
        "SELECT string_agg(state, ' ' ORDER BY handler) FROM outbox.delivery GROUP BY event_id ORDER BY event_id";
    let all = |state| format!("{state} {state} {state}");
    let expected = ["scheduled", "done", "expired", "done"].map(all);
    until("each has its state", async || texts(&session, states).await == expected).await;
}
