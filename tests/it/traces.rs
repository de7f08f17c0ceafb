//! Who follows an event sees all of it: from the app's INSERT through every attempt to what came of it. And whoever receives the spans, or
//! does not, changes nothing for the events.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use outboxd::postgres::Session;
use outboxd::{Attempt, Config, Event, Observation};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{
    Collector, ConfigFile, Database, Mood, Process, Running, attribute, daemon, id, outboxd, outboxd_output,
    publish_many, scrape, text, texts, until, until_within, url,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const APP: &str = "00f067aa0ba902b7";

/// Headers by path.
type Sent = Arc<Mutex<BTreeMap<String, HeaderMap>>>;

/// A web service whose `/mail` emits an event.
async fn service() -> (String, Sent) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let sent = Sent::default();
    let kept = Arc::clone(&sent);
    let router = Router::new().fallback(async move |uri: Uri, headers: HeaderMap| {
        kept.lock().unwrap().insert(uri.path().to_owned(), headers);
        let emits = r#"{"outcome": "done", "emit": [{"topic": "mail.sent", "payload": {"to": "Ada"}}]}"#;
        let answer = if uri.path() == "/mail" { emits } else { "{}" };
        ([("content-type", "application/json")], answer)
    });
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, sent)
}

async fn insert(session: &Session, flags: &str) {
    let insert = format!(
        "INSERT INTO outbox.event (topic, payload, headers) VALUES \
         ('order.placed', '{{\"order\": 7}}', '{{\"traceparent\": \"00-{TRACE}-{APP}-{flags}\", \"tracestate\": \"app=1\"}}')"
    );
    session.client.batch_execute(&insert).await.unwrap();
}

async fn all_done(session: &Session, deliveries: usize) {
    until(&format!("{deliveries} deliveries are done"), async || {
        text(session, "SELECT count(*) FROM outbox.done WHERE outcome = 'done'").await == deliveries.to_string()
    })
    .await;
}

/// The span of one attempt with this name.
#[track_caller]
fn of<'a>(spans: &'a [Span], operation: &str, handler: &str, attempt: &str) -> &'a Span {
    let fits = |span: &&Span| {
        attribute(span, "messaging.operation.name") == operation
            && attribute(span, "messaging.consumer.group.name") == handler
            && attribute(span, "outboxd.attempt") == attempt
    };
    let found: Vec<&Span> = spans.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{operation} of attempt {attempt} of {handler}");
    found[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_an_event_is_complete() {
    let database = Database::new().await;
    let session = database.session().await;
    let (collector, (service, sent)) = (Collector::start().await, service().await);
    let config = ConfigFile::new(&format!(
        r#"
[traces]
endpoint = "{}"
headers = {{ Authorization = "Bearer x" }}
[handler.mail]
topics = ["order.placed"]
http.url = "{service}/mail"
[handler.ledger]
topics = ["order.placed"]
command = ["/bin/sh", "-c", '''printf '{{"trace": "%s"}}' "$TRACEPARENT"; test "$OUTBOX_ATTEMPT" != 1''']
retry = {{ base = "1ms", max = "1ms" }}
[handler.archive]
topics = ["mail.sent"]
http.url = "{service}/archive"
"#,
        collector.endpoint
    ));
    let mut process = Process::run(&database, &config);
    let address = process.address().await;
    insert(&session, "01").await;
    all_done(&session, 3).await;
    let spans = collector.spans(12).await;
    assert_eq!(spans.len(), 12, "three for each of four attempts");

    // Every parent is there, and everything is below the app's span.
    let ids: HashSet<String> = spans.iter().map(|span| id(&span.span_id)).collect();
    assert_eq!(ids.len(), spans.len(), "each has an id of its own");
    for span in &spans {
        let parent = id(&span.parent_span_id);
        assert!(parent == APP || ids.contains(&parent), "{span:?}");
        assert_eq!(id(&span.trace_id), TRACE, "{span:?}");
        assert!(span.start_time_unix_nano > 0 && span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
    }
    let (mail, archive) = (of(&spans, "process", "mail", "1"), of(&spans, "process", "archive", "1"));
    let (failed, again) = (of(&spans, "process", "ledger", "1"), of(&spans, "process", "ledger", "2"));
    assert_eq!([mail, failed, again].map(|span| id(&span.parent_span_id)), [APP; 3]);
    assert_eq!(archive.parent_span_id, mail.span_id, "what was emitted belongs to the attempt that did");
    for (handler, attempt) in [("mail", "1"), ("ledger", "1"), ("ledger", "2"), ("archive", "1")] {
        let [queue, process, settle] = ["queue", "process", "settle"].map(|name| of(&spans, name, handler, attempt));
        assert_eq!(
            (&queue.parent_span_id, queue.end_time_unix_nano),
            (&process.parent_span_id, process.start_time_unix_nano)
        );
        assert_eq!(
            (&settle.parent_span_id, settle.start_time_unix_nano),
            (&process.span_id, process.end_time_unix_nano)
        );
        assert_eq!((process.kind(), settle.kind()), (SpanKind::Consumer, SpanKind::Client));
    }
    assert_eq!((&again.links[0].span_id, &again.links[0].trace_id), (&failed.span_id, &failed.trace_id));
    assert!(mail.links.is_empty() && failed.links.is_empty());
    let status = failed.status.clone().unwrap();
    assert_eq!((status.code(), &*status.message), (SpanStatus::Error, "exit code 1"));
    assert_eq!((again.status.clone(), attribute(again, "outboxd.outcome")), (None, "done".to_owned()));
    assert_eq!(
        (attribute(failed, "outboxd.outcome"), attribute(failed, "error.type")),
        ("retry".into(), "retry".into())
    );
    assert_eq!(mail.name, "process order.placed");
    assert_eq!(attribute(mail, "messaging.system"), "outboxd");
    assert_eq!(attribute(mail, "messaging.message.id"), "1");
    assert_eq!(attribute(archive, "messaging.destination.name"), "mail.sent");

    // What the handlers were given is where their own spans belong.
    let below = |span: &Span| format!("00-{TRACE}-{}-01", id(&span.span_id));
    let sent = sent.lock().unwrap().clone();
    assert_eq!(sent["/mail"]["traceparent"], below(mail).as_str());
    assert_eq!(sent["/mail"]["tracestate"], "app=1");
    assert_eq!(sent["/archive"]["traceparent"], below(archive).as_str());
    let result = "SELECT result ->> 'trace' FROM outbox.done WHERE handler = 'ledger'";
    assert_eq!(text(&session, result).await, below(again));

    assert!(collector.requests().iter().all(|headers| headers["authorization"] == "Bearer x"));
    assert_eq!(collector.resource("service.name"), "outboxd");
    let scrape = scrape(address).await;
    assert_eq!((scrape.value("outboxd_spans_exported_total"), scrape.value("outboxd_spans_dropped_total")), (12, 0));
    let shown = outboxd_output(Some(&database), &["show", "1"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(&format!("  trace      {TRACE}\n")), "{shown}");
    process.signal(Signal::TERM);
    assert!(process.ended().await.success());
}

/// A daemon with a handler in Rust that keeps what it is told, and emits.
fn told(
    database: &Database,
    collector: &Collector,
    more: &str,
) -> (outboxd::DaemonBuilder, Arc<Mutex<Vec<Option<String>>>>) {
    let text = format!("[traces]\nendpoint = \"{}\"\n{more}", collector.endpoint);
    let config = Config::parse(&text, "outboxd.toml", &|_| None).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&told);
    let handle = move |attempt: Attempt| {
        kept.lock().unwrap().push(attempt.traceparent());
        std::future::ready(())
    };
    let delivery = outboxd::config::DeliveryConfig::new(vec!["#".parse().unwrap()]);
    let builder = daemon(database).config(config);
    (builder.handler_with("one", delivery.clone(), handle.clone()).handler_with("two", delivery, handle), told)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_trace_begins_one_that_its_handlers_share() {
    let database = Database::new().await;
    let session = database.session().await;
    let collector = Collector::start().await;
    let (builder, told) = told(&database, &collector, "");
    let running = Running::start(builder).await;
    let broken = "SELECT outbox.publish('a', '{}', headers => '{\"traceparent\": \"00-1\", \"tracestate\": \"x=1\"}')";
    session.client.batch_execute(broken).await.unwrap();
    let spans = collector.spans(6).await;
    let traces: HashSet<String> = spans.iter().map(|span| id(&span.trace_id)).collect();
    let [trace] = &traces.into_iter().collect::<Vec<_>>()[..] else { panic!("not one trace: {spans:?}") };
    for handler in ["one", "two"] {
        let process = of(&spans, "process", handler, "1");
        assert!(process.parent_span_id.is_empty() && of(&spans, "queue", handler, "1").parent_span_id.is_empty());
        let own = format!("00-{trace}-{}-01", id(&process.span_id));
        assert!(told.lock().unwrap().contains(&Some(own)));
    }
    running.stop().await;
    // Who knows that spans are exported is told which trace it was.
    let config = ConfigFile::new(&format!("[traces]\nendpoint = \"{}\"\n", collector.endpoint));
    let shown = async |arguments: &[&str]| {
        let output = outboxd_output(Some(&database), &[&["show", "1", "--json"], arguments].concat()).await;
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["trace_id"].clone()
    };
    assert_eq!(shown(&["--config", config.path()]).await, trace.as_str());
    assert_eq!(shown(&[]).await, Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sampled_is_not_exported_and_says_so_to_its_handlers() {
    let database = Database::new().await;
    let session = database.session().await;
    let collector = Collector::start().await;
    let (builder, told) = told(&database, &collector, "sample = 0\n");
    let running = Running::start(builder).await;
    // One that has a trace decides for itself; one that has none is not sampled.
    insert(&session, "00").await;
    publish_many(&session, "a", 1).await;
    insert(&session, "01").await;
    all_done(&session, 6).await;
    let spans = collector.spans(6).await;
    assert_eq!(spans.len(), 6, "of the last event only");
    assert!(spans.iter().all(|span| attribute(span, "messaging.message.id") == "3"));
    let told = told.lock().unwrap().clone();
    let given = format!("00-{TRACE}-{APP}-00");
    assert_eq!(told.iter().filter(|told| **told == Some(given.clone())).count(), 2, "{told:?}");
    let begun: Vec<&String> = told.iter().flatten().filter(|told| !told.contains(TRACE)).collect();
    assert!(begun.len() == 2 && begun.iter().all(|told| told.ends_with("-00")), "{told:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_receiver_the_apps_trace_is_passed_on_as_it_is() {
    let database = Database::new().await;
    let session = database.session().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&told);
    let handle = move |attempt: Attempt| {
        kept.lock().unwrap().push((attempt.event.id.0, attempt.traceparent()));
        std::future::ready(())
    };
    let delivery = outboxd::config::DeliveryConfig::new(vec!["#".parse().unwrap()]);
    let running = Running::start(daemon(&database).handler_with("one", delivery, handle)).await;
    insert(&session, "01").await;
    all_done(&session, 1).await;
    publish_many(&session, "a", 1).await;
    all_done(&session, 2).await;
    assert_eq!(*told.lock().unwrap(), [(1, Some(format!("00-{TRACE}-{APP}-01"))), (2, None)]);
    running.stop().await;
}

/// A daemon that does nothing with events and sends their spans there.
async fn exporting(database: &Database, endpoint: &str) -> Running {
    let config = Config::parse(&format!("[traces]\nendpoint = \"{endpoint}\"\n"), "outboxd.toml", &|_| None).unwrap();
    Running::start(daemon(database).config(config).handler("all", ["#"], async |_: Event| ())).await
}

fn refused(observation: &Observation) -> bool {
    matches!(observation, Observation::SpansRefused { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_away_loses_spans_and_nothing_else_and_is_told_of_once() {
    let database = Database::new().await;
    let session = database.session().await;
    let collector = Collector::start().await;
    let running = exporting(&database, &collector.endpoint).await;
    let address = running.address().await;
    // For good: it is not asked again with the same.
    collector.set(Mood::Answers(StatusCode::BAD_REQUEST));
    publish_many(&session, "a", 1).await;
    until("that is dropped", async || scrape(address).await.value("outboxd_spans_dropped_total") == 3).await;
    publish_many(&session, "a", 1).await;
    until("and that", async || scrape(address).await.value("outboxd_spans_dropped_total") == 6).await;
    assert_eq!((collector.requests().len(), running.count(refused)), (2, 1));
    // For now: it is asked again with the same, and takes it.
    collector.set(Mood::Answers(StatusCode::SERVICE_UNAVAILABLE));
    publish_many(&session, "a", 1).await;
    until("it was asked twice", async || collector.requests().len() >= 4).await;
    collector.set(Mood::Takes);
    assert_eq!(collector.spans(3).await.len(), 3);
    running.observed("it takes them", |o| matches!(o, Observation::SpansTaken)).await;
    // It may be choosy.
    collector.set(Mood::TakesAllButOne);
    publish_many(&session, "a", 1).await;
    until("the others count", async || scrape(address).await.value("outboxd_spans_exported_total") == 5).await;
    assert_eq!(scrape(address).await.value("outboxd_spans_dropped_total"), 7);
    assert_eq!(running.count(refused), 1);
    all_done(&session, 4).await;
    running.stop().await;

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let running = exporting(&database, &format!("http://{nobody}")).await;
    publish_many(&session, "a", 1000).await;
    all_done(&session, 1004).await;
    running.observed("that is told", refused).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_holds_up_nothing_and_the_queue_is_bounded() {
    let database = Database::new().await;
    let session = database.session().await;
    let collector = Collector::start().await;
    collector.set(Mood::Hangs);
    let running = exporting(&database, &collector.endpoint).await;
    let address = running.address().await;
    publish_many(&session, "a", 1).await;
    until("it hangs", async || collector.requests().len() == 1).await;
    // More than wait, and than the request has that hangs.
    publish_many(&session, "a", 6000).await;
    until_within(60, "all of them are done", async || {
        text(&session, "SELECT count(*) FROM outbox.done WHERE outcome = 'done'").await == "6001"
    })
    .await;
    let dropped = scrape(address).await.value("outboxd_spans_dropped_total");
    assert!(dropped > 0 && dropped < 3 * 6000, "{dropped}");
    running.observed("that it hangs is told", refused).await;
    // Its end waits for a while, not for ever.
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_sent_before_the_end() {
    let database = Database::new().await;
    let session = database.session().await;
    let collector = Collector::start().await;
    let running = exporting(&database, &collector.endpoint).await;
    publish_many(&session, "a", 700).await;
    all_done(&session, 700).await;
    running.stop().await;
    assert_eq!(collector.spans(3 * 700).await.len(), 3 * 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_receiver_counts_from_the_next_start() {
    let database = Database::new().await;
    let config = ConfigFile::new("");
    let process = Process::run(&database, &config);
    process.logged("leading").await;
    config.write("[traces]\nendpoint = \"http://127.0.0.1:1\"\n");
    process.signal(Signal::HUP);
    process.logged("settings in [traces] have changed; they apply from the next start").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sql_does_stays_in_the_trace() {
    let database = Database::new().await;
    let session = database.session().await;
    let collector = Collector::start().await;
    let function = "CREATE SCHEMA app; CREATE FUNCTION app.f(outbox.event) RETURNS jsonb LANGUAGE sql AS \
                    $$ SELECT '{\"outcome\": \"done\", \"emit\": [{\"topic\": \"next\"}]}'::jsonb $$";
    session.client.batch_execute(function).await.unwrap();
    let config = format!(
        "[traces]\nendpoint = \"{}\"\n[handler.f]\ntopics = [\"order.placed\"]\nsql = \"app.f\"\non_done = \"told\"\n\
         [handler.g]\ntopics = [\"next\", \"told\"]\ncommand = [\"true\"]\nbatch = {{ max = 2, wait = \"100ms\" }}\n",
        collector.endpoint
    );
    let config = Config::parse(&config, "outboxd.toml", &|_| None).unwrap();
    let running = Running::start(daemon(&database).config(config)).await;
    insert(&session, "01").await;
    all_done(&session, 3).await;
    let spans = collector.spans(9).await;
    let first = of(&spans, "process", "f", "1");
    let next: Vec<&Span> =
        spans.iter().filter(|span| attribute(span, "messaging.consumer.group.name") == "g").collect();
    assert_eq!(next.len(), 6);
    assert_eq!(next.iter().filter(|span| span.parent_span_id == first.span_id).count(), 4, "queue and process of both");
    let headers = texts(&session, "SELECT DISTINCT headers ->> 'traceparent' FROM outbox.event WHERE id > 1").await;
    assert_eq!(headers, [format!("00-{TRACE}-{}-01", id(&first.span_id))]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_daemon_links_a_retry_to_what_the_first_one_did() {
    let database = Database::new().await;
    let session = database.session().await;
    let collector = Collector::start().await;
    let config = ConfigFile::new(&format!(
        "[traces]\nendpoint = \"{}\"\n[handler.a]\ntopics = [\"#\"]\ncommand = [\"/bin/sh\", \"-c\", \"exit 1\"]\n\
         retry = {{ base = \"24h\", max = \"24h\" }}\n",
        collector.endpoint
    ));
    let mut first = Process::run(&database, &config);
    first.logged("leading").await;
    insert(&session, "01").await;
    let failed = of(&collector.spans(3).await, "process", "a", "1").clone();
    first.signal(Signal::KILL);
    assert!(!first.ended().await.success());
    let mut second = Process::start({
        let mut command = outboxd(None, &["run", "--config", config.path()]);
        command.env("DATABASE_URL", url(&database));
        command
    });
    second.logged("leading").await;
    assert_eq!(text(&session, "SELECT outbox.retry(1, 'a')").await, "true");
    let spans = collector.spans(6).await;
    assert_eq!(of(&spans, "process", "a", "2").links[0].span_id, failed.span_id);
    second.signal(Signal::TERM);
    assert!(second.ended().await.success());
}
