//! A handler's target that cannot be reached, fails, or is gone: what was meant for it waits, and nobody else notices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri};
use outboxd::postgres::Session;
use outboxd::{Config, Event, Observation};
use tokio::net::TcpListener;

use crate::handlers::start;
use crate::harness::{Database, Running, daemon, deliveries, done, publish, text, texts, until, until_within};

/// Whatever waits for its time need not.
const ALL_ARE_DUE: &str = "UPDATE outbox.open SET due_at = clock_timestamp() WHERE due_at IS NOT NULL; NOTIFY outbox";

/// The events that each path was given, in order and by key.
type Received = Arc<Mutex<BTreeMap<(String, String), Vec<i64>>>>;

/// An address on which nobody listens.
async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// From here on somebody does.
async fn listen(address: SocketAddr) -> Received {
    let received = Received::default();
    let kept = Arc::clone(&received);
    let answer = move |uri: Uri, headers: HeaderMap| {
        let of = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        let (path, id) = (uri.path().to_owned(), of("ce-id").parse().unwrap());
        kept.lock().unwrap().entry((path, of("ce-subject"))).or_default().push(id);
        async { StatusCode::OK }
    };
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    received
}

async fn insert(session: &Session, count: i32) {
    let query =
        "INSERT INTO outbox.event (topic, key, payload) SELECT 'a', 'k' || n % 10, '{}' FROM generate_series(1, $1) n";
    session.client.execute(query, &[&count]).await.unwrap();
}

async fn number(session: &Session, query: &str) -> i64 {
    text(session, &format!("SELECT count(*) FROM {query}")).await.parse().unwrap()
}

/// The clock is moved by data: every minute of the outage, everything that waits for its time is due.
#[tokio::test(flavor = "multi_thread")]
async fn in_an_outage_only_probes_are_sent_nothing_dies_and_then_all_is_delivered_in_order() {
    let database = Database::new().await;
    let session = database.session().await;
    let address = nowhere().await;
    let web = |name: &str| {
        format!(
            "[handler.{name}]\ntopics = [\"a\"]\nhttp.url = \"http://{address}/{name}\"\nordered = true\n\
             retry = {{ max_attempts = 2, base = \"1ms\", max = \"5ms\" }}\n"
        )
    };
    let config = Config::parse(&(web("web") + &web("twin")), "outboxd.toml", &|_| None).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = {
        let told = Arc::clone(&told);
        move |event: Event| {
            told.lock().unwrap().push(format!("{} {}", event.topic, event.key.unwrap()));
            async {}
        }
    };
    let builder = daemon(&database).config(config).handler("other", ["a"], async |_: Event| ()).handler(
        "listener",
        ["outboxd.handler.*"],
        listener,
    );
    let running = Running::start(builder).await;
    insert(&session, 300).await;
    let opened = "outbox.handler WHERE breaker = 'open' AND breaker_error LIKE '%refused%'";
    until("both breakers are open", async || number(&session, opened).await == 2).await;
    until("the other handler is done", async || done(&session, "other").await.len() == 300).await;

    let attempts = || async { number(&session, "outbox.attempt").await };
    let at_opening = attempts().await;
    let woken = || running.count(|o| matches!(o, Observation::Woken));
    let minute = "UPDATE outbox.open SET due_at = clock_timestamp(), created_at = created_at - interval '1 minute'
                  WHERE due_at IS NOT NULL; NOTIFY outbox";
    let mut minutes = 0;
    while minutes < 20 || attempts().await < at_opening + 3 {
        let before = woken();
        session.client.batch_execute(minute).await.unwrap();
        until("the daemon has heard of that", async || woken() > before).await;
        minutes += 1;
    }
    assert_eq!(number(&session, "outbox.open WHERE state = 'dead' OR failures > 0").await, 0);
    assert_eq!(number(&session, "outbox.attempt WHERE outcome <> 'unreachable'").await, 0);
    // Eight slots and a window of twenty for each, and then one probe after another for both.
    assert!(attempts().await < 80, "{} attempts", attempts().await);
    insert(&session, 20).await;
    until("the other handler goes on", async || done(&session, "other").await.len() == 320).await;

    let received = listen(address).await;
    for name in ["web", "twin"] {
        until_within(60, "all is delivered", async || done(&session, name).await.len() == 320).await;
    }
    until("the breakers are closed", async || number(&session, "outbox.handler WHERE breaker = 'open'").await == 0)
        .await;
    until("that was told", async || told.lock().unwrap().len() == 4).await;
    let mut told = told.lock().unwrap().clone();
    told[..2].sort();
    told[2..].sort();
    let expected = ["opened twin", "opened web", "closed twin", "closed web"];
    assert_eq!(told, expected.map(|said| format!("outboxd.handler.{said}")));
    let received = received.lock().unwrap().clone();
    assert_eq!(received.len(), 20);
    assert!(received.values().all(|ids| ids.len() == 32 && ids.is_sorted()), "{received:?}");
    assert_eq!(number(&session, "outbox.open").await, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_that_was_open_is_open_after_a_restart() {
    let database = Database::new().await;
    let session = database.session().await;
    let address = nowhere().await;
    let config = format!("[handler.web]\ntopics = [\"a\"]\nhttp.url = \"http://{address}/\"\nconcurrency = 50\n");
    let running = start(&database, &config).await;
    insert(&session, 50).await;
    until("it opens", async || number(&session, "outbox.handler WHERE breaker = 'open'").await == 1).await;
    running.stop().await;
    let before = number(&session, "outbox.attempt").await;
    session.client.batch_execute(ALL_ARE_DUE).await.unwrap();
    let running = start(&database, &config).await;
    until("it probes", async || number(&session, "outbox.attempt").await > before).await;
    assert_eq!(number(&session, "outbox.attempt").await, before + 1, "and does nothing else");
    listen(address).await;
    until_within(60, "all is delivered", async || {
        session.client.batch_execute(ALL_ARE_DUE).await.unwrap();
        done(&session, "web").await.len() == 50
    })
    .await;
    running.stop().await;
}

/// Answers 410 while it is gone.
async fn service(gone: &Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let gone = Arc::clone(gone);
    let answer = move || {
        let status = if gone.load(Ordering::Relaxed) { StatusCode::GONE } else { StatusCode::OK };
        async move { status }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_410_pauses_the_handler_until_somebody_resumes_it_and_nothing_is_lost() {
    let database = Database::new().await;
    let session = database.session().await;
    let gone = Arc::new(AtomicBool::new(true));
    let config = format!(
        "[handler.web]\ntopics = [\"a\"]\nhttp.url = \"{}\"\nconcurrency = 1\nretry = {{ max_attempts = 1 }}\n",
        service(&gone).await
    );
    let running = start(&database, &config).await;
    insert(&session, 10).await;
    let paused = "SELECT pause_reason FROM outbox.backlog WHERE handler = 'web' AND paused";
    until("it is paused", async || texts(&session, paused).await.iter().any(|reason| reason.contains("410 Gone")))
        .await;
    running.stop().await;
    let running = start(&database, &config).await;
    insert(&session, 10).await;
    session.client.batch_execute("NOTIFY outbox").await.unwrap();
    until("it was asked", async || running.count(|o| matches!(o, Observation::Woken)) > 0).await;
    assert_eq!(number(&session, "outbox.attempt").await, 1, "the restart has changed nothing");
    let open = texts(&session, "SELECT state || ' ' || failures || ' ' || attempt FROM outbox.open").await;
    assert_eq!(open, ["retrying 0 1"]);
    gone.store(false, Ordering::Relaxed);
    assert_eq!(text(&session, "SELECT outbox.resume('web')").await, "true");
    until("all is delivered", async || done(&session, "web").await.len() == 20).await;
    running.observed("it says so", |o| matches!(o, Observation::Resumed { .. })).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_by_hand_lets_what_runs_end_begins_nothing_and_may_end_by_itself() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler("quick", ["a"], async |_: Event| ())).await;
    let pause = "SELECT outbox.pause('quick', 'deploy', clock_timestamp() + interval '2 seconds')";
    assert_eq!(text(&session, pause).await, "true");
    running.observed("it is paused", |o| matches!(o, Observation::Paused { .. })).await;
    let event = publish(&session, "a").await;
    assert_eq!(deliveries(&session, event).await, ["quick|pending|0"]);
    until("the pause is over", async || deliveries(&session, event).await == ["quick|done|1"]).await;
    assert_eq!(text(&session, "SELECT clock_timestamp() > paused_until FROM outbox.handler").await, "true");
    running.stop().await;
}
