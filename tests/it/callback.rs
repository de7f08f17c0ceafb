//! An answer that comes later: by a callback, in SQL, or because the handler is asked again; whichever comes first counts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use outboxd::callback::CallbackKey;
use outboxd::config::{DeliveryConfig, OnDeadKey};
use outboxd::event::EventId;
use outboxd::outcome::PollPolicy;
use outboxd::postgres::Session;
use outboxd::{Attempt, CancellationToken, Event, Failure, Observation, Outcome, RetryPolicy};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::handlers::start;
use crate::harness::{Database, Running, daemon, deliveries, publish, publish_many, text, texts, until};

/// Waits for a callback; two failures are too many.
pub(crate) fn waits() -> DeliveryConfig {
    let (base, max) = (Duration::from_millis(1), Duration::from_millis(1));
    let retry = RetryPolicy { max_attempts: 2, base, max, ..RetryPolicy::default() };
    DeliveryConfig { retry, callback: true, ..DeliveryConfig::new(vec!["a".parse().unwrap()]) }
}

fn polls(base: u64, timeout: Duration) -> DeliveryConfig {
    let (base, max) = (Duration::from_millis(base), Duration::from_millis(base));
    DeliveryConfig { poll: Some(PollPolicy { base, max, timeout }), ..waits() }
}

/// Where each attempt was told to post its answer.
#[derive(Clone, Default)]
pub(crate) struct Urls(Arc<Mutex<Vec<String>>>);

impl Urls {
    fn keep(&self, attempt: &Attempt) {
        self.0.lock().unwrap().push(attempt.callback.clone().expect("it takes callbacks"));
    }

    pub(crate) fn last(&self) -> String {
        self.0.lock().unwrap().last().expect("an attempt has begun").clone()
    }

    /// A handler that keeps the URL and waits.
    pub(crate) fn handler(&self) -> impl Fn(Attempt) -> std::future::Ready<Outcome> + Send + Sync + 'static + use<> {
        let urls = self.clone();
        move |attempt: Attempt| {
            urls.keep(&attempt);
            std::future::ready(Outcome::Wait { timeout: None })
        }
    }
}

/// Posts an answer; the status and the body of what comes back.
pub(crate) async fn post(url: &str, body: impl Into<String>) -> (u16, Value) {
    let client = outboxd::handler::http::client().unwrap();
    let response = client.post(url).body(body.into()).send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {text:?}: {error}")))
}

async fn is(session: &Session, event: i64, delivery: &str) {
    until(&format!("event {event} is {delivery}"), async || deliveries(session, event).await == [delivery]).await;
}

async fn result_of(session: &Session, event: i64) -> String {
    text(session, &format!("SELECT result FROM outbox.done WHERE event_id = {event}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_finishes_what_waits_and_its_body_is_the_result() {
    let (database, urls) = (Database::new().await, Urls::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("pay", waits(), urls.handler())).await;
    let bodies = [
        ("", "null"),
        (r#"{"status": "paid", "id": 7}"#, r#"{"id": 7, "status": "paid"}"#),
        (r#"{"outcome": "done", "result": [1]}"#, "[1]"),
        ("7", "7"),
    ];
    for (body, result) in bodies {
        let event = publish(&session, "a").await;
        is(&session, event, "pay|waiting|1").await;
        assert_eq!(post(&urls.last(), body).await, (200, json!({ "accepted": true })));
        assert_eq!(deliveries(&session, event).await, ["pay|done|1"]);
        assert_eq!(result_of(&session, event).await, result);
    }
    assert_eq!(running.count(|o| matches!(o, Observation::Answered { done: true, .. })), bodies.len());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_says_no_follows_the_retry_policy_or_ends_it() {
    let (database, urls) = (Database::new().await, Urls::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("pay", waits(), urls.handler())).await;
    let event = publish(&session, "a").await;
    is(&session, event, "pay|waiting|1").await;
    let no = r#"{"outcome": "retry", "error": "no money yet"}"#;
    assert_eq!(post(&urls.last(), no).await, (200, json!({ "accepted": true })));
    is(&session, event, "pay|waiting|2").await;
    assert_eq!(post(&urls.last(), no).await, (200, json!({ "accepted": true })));
    assert_eq!(deliveries(&session, event).await, ["pay|dead|2"]);
    let after = post(&urls.last(), "").await;
    let error = "the delivery is dead: this changes nothing";
    assert_eq!(after, (409, json!({ "accepted": false, "state": "dead", "error": error })));

    let event = publish(&session, "a").await;
    is(&session, event, "pay|waiting|1").await;
    let never = r#"{"outcome": "dead", "error": "the card is stolen"}"#;
    assert_eq!(post(&urls.last(), never).await, (200, json!({ "accepted": true })));
    assert_eq!(deliveries(&session, event).await, ["pay|dead|1"]);
    let error = format!("SELECT last_error FROM outbox.open WHERE event_id = {event}");
    assert_eq!(text(&session, &error).await, "the card is stolen");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_overtakes_its_own_answer_counts() {
    let database = Database::new().await;
    let session = database.session().await;
    let overtaken = async |attempt: Attempt| {
        let url = attempt.callback.clone().unwrap();
        let said = post(&url, r#"{"n": 1}"#).await;
        assert_eq!(said, (200, json!({ "accepted": true })));
        Outcome::Wait { timeout: None }
    };
    let running = Running::start(daemon(&database).handler_with("pay", waits(), overtaken)).await;
    let events = publish_many(&session, "a", 20).await;
    running.observed("the attempts' own ends are refused", |o| matches!(o, Observation::Refused { .. })).await;
    for event in events {
        is(&session, event, "pay|done|1").await;
        assert_eq!(result_of(&session, event).await, r#"{"n": 1}"#);
    }
    running.stop().await;
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_callback_changes_nothing_and_is_told_so() {
    let (database, urls) = (Database::new().await, Urls::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("pay", waits(), urls.handler())).await;
    let event = publish(&session, "a").await;
    is(&session, event, "pay|waiting|1").await;
    let url = urls.last();
    let at_once = tokio::join!(post(&url, "1"), post(&url, "2"), post(&url, "3"));
    let all = [at_once.0, at_once.1, at_once.2];
    assert_eq!(all.iter().filter(|(status, said)| *status == 200 && said["accepted"] == true).count(), 1, "{all:?}");
    let kept = result_of(&session, event).await;
    let error = "the delivery is done: this changes nothing";
    let said = json!({ "accepted": false, "state": "done", "error": error });
    // What agrees need not be said again, so it is a success; what contradicts is none.
    assert_eq!(post(&url, "9").await, (200, said.clone()));
    assert_eq!(post(&url, r#"{"outcome": "dead", "error": "no"}"#).await, (409, said));
    assert_eq!(result_of(&session, event).await, kept);
    running.stop().await;
}

/// A token as the daemon would have made it at this time.
async fn token(session: &Session, event: i64, handler: &str, at: jiff::Timestamp) -> String {
    let key = session.client.query_one("SELECT key FROM outbox.callback_key", &[]).await.unwrap();
    let row = session.client.query_one("SELECT created_at FROM outbox.event WHERE id = $1", &[&event]).await.unwrap();
    let (id, created_at) = (EventId(event), row.get("created_at"));
    let (topic, key_of, payload, headers) = ("a".to_owned(), None, "{}".to_owned(), "{}".to_owned());
    let event = Event { id, topic, key: key_of, payload, headers, created_at };
    CallbackKey::new(key.get(0)).token(&event, handler, at)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_callback_is_refused_and_changes_nothing() {
    let (database, urls) = (Database::new().await, Urls::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("pay", waits(), urls.handler())).await;
    let event = publish(&session, "a").await;
    is(&session, event, "pay|waiting|1").await;
    let url = urls.last();
    let base = url.rsplit_once('/').unwrap().0.to_owned();
    let refused = |status: u16, error: &str| (status, json!({ "accepted": false, "error": error }));

    let forged = refused(404, "there is no such callback");
    let (claim, code) = url.rsplit_once('/').unwrap().1.split_once('.').unwrap();
    let mirrored: String = code.chars().rev().collect();
    for token in ["x".to_owned(), format!("{claim}.{mirrored}"), format!("{claim}."), "y".repeat(5000)] {
        assert_eq!(post(&format!("{base}/{token}"), "1").await, forged, "{token}");
    }
    let now = jiff::Timestamp::now();
    let long_ago = now - jiff::SignedDuration::from_hours(31 * 24);
    let expired = token(&session, event, "pay", long_ago).await;
    assert_eq!(post(&format!("{base}/{expired}"), "1").await, refused(410, "this callback has expired"));
    // Of a delivery that is not there: another handler's, or of an event whose id was given out again.
    let elsewhere = token(&session, event, "other", now).await;
    assert_eq!(post(&format!("{base}/{elsewhere}"), "1").await.0, 409);

    for (body, error) in [
        ("{", "the body is not JSON"),
        (r#"{"outcome": "snooze", "after": 1}"#, "a callback's \"outcome\" is"),
        (r#"{"outcome": "perhaps"}"#, "the answer's \"outcome\" is \"perhaps\""),
        (r#"{"outcome": "done", "emit": [{"topic": "b"}]}"#, "a callback's \"outcome\" is"),
        (r#""a\u0000b""#, "the result held a NUL character"),
    ] {
        // Of a delivery of its own: one takes only so many in a second.
        let event = publish(&session, "a").await;
        is(&session, event, "pay|waiting|1").await;
        let (status, said) = post(&urls.last(), body).await;
        assert!(status == 422 && said["error"].as_str().unwrap().starts_with(error), "{body}: {status} {said}");
        assert_eq!(deliveries(&session, event).await, ["pay|waiting|1"]);
    }
    let large = format!("\"{}\"", "x".repeat(40_000));
    assert_eq!(post(&urls.last(), large).await.0, 422);
    assert_eq!(deliveries(&session, event).await, ["pay|waiting|1"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_of_100_megabytes_is_refused_before_it_is_read() {
    let (database, urls) = (Database::new().await, Urls::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("pay", waits(), urls.handler())).await;
    let event = publish(&session, "a").await;
    is(&session, event, "pay|waiting|1").await;
    let (address, path) = (running.address().await, urls.last());
    let path = path.split_once("/callback").unwrap().1;
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("POST /callback{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut sent = 0usize;
    let chunk = vec![b'x'; 65_536];
    // Whoever goes on sending is cut off.
    while sent < 104_857_600 && stream.write_all(&chunk).await.is_ok() {
        sent += chunk.len();
    }
    assert!(sent < 104_857_600, "all of it was taken");
    assert_eq!(deliveries(&session, event).await, ["pay|waiting|1"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_delivery_takes_so_many_callbacks_in_a_second() {
    let (database, urls) = (Database::new().await, Urls::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("pay", waits(), urls.handler())).await;
    let event = publish(&session, "a").await;
    is(&session, event, "pay|waiting|1").await;
    let url = urls.last();
    let refused = Arc::new(AtomicUsize::new(0));
    until("some are too many", async || {
        if post(&url, "{").await
            == (429, json!({ "accepted": false, "error": "too many callbacks; try again in a second" }))
        {
            refused.fetch_add(1, Ordering::Relaxed);
        }
        refused.load(Ordering::Relaxed) > 0
    })
    .await;
    until("later there is room again", async || post(&url, "1").await.0 == 200).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_callback_is_made_good_by_asking_again() {
    let database = Database::new().await;
    let session = database.session().await;
    let asks = async |attempt: Attempt| match (attempt.number, &*attempt.event.payload) {
        (3, _) => Outcome::done_with(json!("ready")),
        (_, "1") => Outcome::Wait { timeout: None },
        _ => Outcome::Snooze { after: None },
    };
    let poll = polls(100, Duration::from_hours(1));
    let running = Running::start(daemon(&database).handler_with("ocr", poll, asks)).await;
    let insert = "INSERT INTO outbox.event (topic, payload) SELECT 'a', to_jsonb(n) FROM generate_series(1, 2) n";
    session.client.batch_execute(insert).await.unwrap();
    for event in 1..=2 {
        is(&session, event, "ocr|done|3").await;
        assert_eq!(result_of(&session, event).await, "\"ready\"");
    }
    let attempts = "SELECT event_id || ' ' || attempt || ' ' || outcome FROM outbox.attempt ORDER BY 1";
    let expected = ["1 1 wait", "1 2 wait", "1 3 done", "2 1 snooze", "2 2 snooze", "2 3 done"];
    assert_eq!(texts(&session, attempts).await, expected);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_answers_has_failed_when_its_time_is_over() {
    let database = Database::new().await;
    let session = database.session().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let never = move |attempt: Attempt| {
        count.fetch_add(1, Ordering::Relaxed);
        let waits = attempt.event.payload == "1";
        std::future::ready(if waits { Outcome::Wait { timeout: None } } else { Outcome::Snooze { after: None } })
    };
    let poll = polls(100, Duration::from_secs(1));
    let running = Running::start(daemon(&database).handler_with("ocr", poll, never)).await;
    let insert = "INSERT INTO outbox.event (topic, payload) SELECT 'a', to_jsonb(n) FROM generate_series(1, 2) n";
    session.client.batch_execute(insert).await.unwrap();
    // Twice: by the retry policy it is asked once more from the beginning.
    for event in 1..=2 {
        until("it is dead", async || deliveries(&session, event).await[0].contains("|dead|")).await;
        let of = "SELECT failures || ' ' || last_error FROM outbox.open WHERE event_id = ";
        let error = text(&session, &format!("{of}{event}")).await;
        assert!(error.starts_with("2 no answer came within the time"), "{error}");
    }
    assert!(asked.load(Ordering::Relaxed) >= 8, "it was asked only {asked:?} times");
    running.stop().await;
}

/// The attempt that asks again is under way when somebody else has the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_callback_during_a_poll_counts_and_the_poll_does_not() {
    let (database, urls) = (Database::new().await, Urls::default());
    let session = database.session().await;
    let go = CancellationToken::new();
    let (gate, kept) = (go.clone(), urls.clone());
    let asks = move |attempt: Attempt| {
        kept.keep(&attempt);
        let gate = gate.clone();
        async move {
            if attempt.number == 1 {
                return Outcome::Wait { timeout: None };
            }
            gate.cancelled().await;
            match &*attempt.event.payload {
                "1" => Outcome::done_with(json!("by the poll")),
                "2" => Outcome::Retry { after: None, failure: Failure::new("the poll failed") },
                _ => Outcome::Wait { timeout: None },
            }
        }
    };
    let poll = polls(100, Duration::from_hours(1));
    let running = Running::start(daemon(&database).handler_with("pay", poll, asks)).await;
    let insert = "INSERT INTO outbox.event (topic, payload) SELECT 'a', to_jsonb(n) FROM generate_series(1, 3) n";
    session.client.batch_execute(insert).await.unwrap();
    for event in 1..=3 {
        is(&session, event, "pay|running|2").await;
    }
    let base = urls.last().rsplit_once('/').unwrap().0.to_owned();
    for event in 1..=3 {
        let token = token(&session, event, "pay", jiff::Timestamp::now()).await;
        assert_eq!(post(&format!("{base}/{token}"), "\"by the callback\"").await.0, 200);
    }
    go.cancel();
    until("the three ends of the polls are refused", async || {
        running.count(|o| matches!(o, Observation::Refused { .. })) == 3
    })
    .await;
    for event in 1..=3 {
        assert_eq!(deliveries(&session, event).await, ["pay|done|2"]);
        assert_eq!(result_of(&session, event).await, "\"by the callback\"");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_understood_after_a_restart_and_not_after_a_cancel() {
    let (database, urls) = (Database::new().await, Urls::default());
    let session = database.session().await;
    let builder = || daemon(&database).handler_with("pay", waits(), urls.handler());
    let running = Running::start(builder()).await;
    let events = publish_many(&session, "a", 2).await;
    for &event in &events {
        is(&session, event, "pay|waiting|1").await;
    }
    let mut tokens = Vec::new();
    for &event in &events {
        tokens.push(token(&session, event, "pay", jiff::Timestamp::now()).await);
    }
    running.stop().await;
    let running = Running::start(builder()).await;
    let address = running.address().await;
    let url = |token: &str| format!("http://{address}/callback/{token}");
    assert_eq!(post(&url(&tokens[0]), "").await, (200, json!({ "accepted": true })));
    assert_eq!(text(&session, &format!("SELECT outbox.cancel({}, 'pay')", events[1])).await, "true");
    let (status, said) = post(&url(&tokens[1]), "").await;
    assert_eq!((status, &said["state"]), (409, &json!("cancelled")));
    assert_eq!(deliveries(&session, events[1]).await, ["pay|cancelled|1"]);
    // While another one leads it answers as well.
    let standby = Running::start_only(builder());
    standby.observed("it stands by", |o| matches!(o, Observation::StandingBy { .. })).await;
    let event = publish(&session, "a").await;
    is(&session, event, "pay|waiting|1").await;
    let token = token(&session, event, "pay", jiff::Timestamp::now()).await;
    let elsewhere = format!("http://{}/callback/{token}", standby.address().await);
    assert_eq!(post(&elsewhere, "").await, (200, json!({ "accepted": true })));
    assert_eq!(deliveries(&session, event).await, ["pay|done|1"]);
    standby.stop().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_one_of_a_key_begins_when_the_answer_has_come() {
    let (database, urls) = (Database::new().await, Urls::default());
    let session = database.session().await;
    let ordered = DeliveryConfig { ordered: Some(OnDeadKey::Block), ..waits() };
    let running = Running::start(daemon(&database).handler_with("pay", ordered, urls.handler())).await;
    for _ in 0..3 {
        session.client.batch_execute("SELECT outbox.publish('a', '{}', key => 'k')").await.unwrap();
    }
    for event in 1..=3 {
        is(&session, event, "pay|waiting|1").await;
        if event < 3 {
            is(&session, event + 1, "pay|blocked|0").await;
        }
        assert_eq!(post(&urls.last(), "").await, (200, json!({ "accepted": true })));
    }
    assert_eq!(texts(&session, "SELECT DISTINCT outcome FROM outbox.done WHERE handler = 'pay'").await, ["done"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_and_programs_are_told_where_to_answer() {
    let database = Database::new().await;
    let session = database.session().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heard);
    let answer = move |headers: HeaderMap| {
        kept.lock().unwrap().push(headers["outbox-callback"].to_str().unwrap().to_owned());
        async { (StatusCode::ACCEPTED, [("outbox-outcome", "wait")]) }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    let program = r#"printf '{"outcome": "done", "result": "%s"}' "$OUTBOX_CALLBACK""#;
    let config = format!(
        "[daemon]\ncallback_url = \"https://hooks.example.com/outboxd/\"\n\
         [handler.http]\ntopics = [\"a\"]\nhttp.url = \"{url}\"\ncallback = true\n\
         [handler.command]\ntopics = [\"a\"]\ncallback = true\ncommand = [\"/bin/sh\", \"-c\", '''{program}''']\n\
         [handler.deaf]\ntopics = [\"a\"]\ncommand = [\"/bin/sh\", \"-c\", '''{program}''']\n"
    );
    let running = start(&database, &config).await;
    let event = publish(&session, "a").await;
    until("each has been called", async || {
        deliveries(&session, event).await == ["command|done|1", "deaf|done|1", "http|waiting|1"]
    })
    .await;
    let result = |handler: &str| format!("SELECT result #>> '{{}}' FROM outbox.done WHERE handler = '{handler}'");
    assert_eq!(text(&session, &result("deaf")).await, "");
    let by_header = heard.lock().unwrap()[0].clone();
    let told = [by_header, text(&session, &result("command")).await];
    for told in told {
        assert!(
            told.starts_with("https://hooks.example.com/outboxd/ey")
                || told.starts_with("https://hooks.example.com/outboxd/M"),
            "{told}"
        );
    }
    running.stop().await;
}
