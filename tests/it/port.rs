//! The daemon's own port tells what is so: metrics that can be counted on, whether it lives, whether it is ready.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, Uri};
use outboxd::config::DeliveryConfig;
use outboxd::postgres::migrate::migrate;
use outboxd::postgres::throwaway::Options;
use outboxd::postgres::{Session, ThrowawayPostgres};
use outboxd::{CancellationToken, Config, Daemon, Event, Failure, Fault, Observation, Observer, Outcome, RetryPolicy};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::handlers::start;
use crate::harness::{
    ConfigFile, Database, Gate, Process, Running, Scrape, daemon, get, outboxd, publish, publish_many, scrape, text,
    until, until_within,
};

/// Waits until what is scraped is so.
async fn shows(address: SocketAddr, what: &str, fact: impl Fn(&Scrape) -> bool) {
    until_within(60, what, async || fact(&scrape(address).await)).await;
}

/// The first three cells of the README's table of metrics: name, type, labels.
fn documented() -> BTreeSet<(String, String, String)> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let section = readme.split_once("\n## Metrics\n").expect("README.md has a section `## Metrics`").1;
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `outboxd_"));
    let row = |line: &str| {
        let cells: Vec<String> = line.split('|').map(|cell| cell.trim().replace('`', "")).collect();
        (cells[1].clone(), cells[2].clone(), cells[3].clone())
    };
    rows.map(row).collect()
}

fn labels_of(scrape: &Scrape, name: &str, kind: &str) -> String {
    let sample = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
    let all: BTreeSet<Vec<&str>> = scrape
        .series(&sample)
        .into_iter()
        .filter(|series| series.split('{').next() == Some(&sample))
        .map(|series| series.split(['{', ',']).skip(1).map(|label| label.split('=').next().unwrap()).collect())
        .collect();
    assert_eq!(all.len(), 1, "{name}: every series has the same labels, and there is one: {all:?}");
    all.first().unwrap().join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_series_is_there_from_the_beginning_and_in_the_readme() {
    let database = Database::new().await;
    let builder =
        daemon(&database).handler("one", ["a"], async |_: Event| ()).handler("two", ["b"], async |_: Event| ());
    let running = Running::start(builder).await;
    let scrape = scrape(running.address().await).await;
    let found: BTreeSet<_> =
        scrape.types.iter().map(|(name, kind)| (name.clone(), kind.clone(), labels_of(&scrape, name, kind))).collect();
    assert_eq!(found, documented(), "left: what is scraped; right: the table in README.md");
    for series in scrape.series("handler=\"") {
        assert_eq!(scrape.value(series), 0, "{series}");
    }
    assert_eq!(scrape.series("handler=\"one\"").len(), scrape.series("handler=\"two\"").len());
    let outcomes = ["done", "retry", "unreachable", "snooze", "wait", "paused", "dead", "cancelled"];
    assert_eq!(scrape.series("outcome=").len(), 2 * outcomes.len());
    assert!(outcomes.iter().all(|outcome| scrape.attempts("two", outcome) == 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted_once() {
    let database = Database::new().await;
    let session = database.session().await;
    let one_try = |topic: &str| {
        let retry = RetryPolicy { max_attempts: 2, base: Duration::from_millis(1), ..RetryPolicy::default() };
        DeliveryConfig { retry, ..DeliveryConfig::new(vec![topic.parse().unwrap()]) }
    };
    let answer = async |attempt: outboxd::Attempt| {
        let failure = Failure::new("no").with_fault(Fault::Refused);
        match (&*attempt.event.topic, attempt.number) {
            ("snooze", 1) => Outcome::Snooze { after: Some(Duration::ZERO) },
            ("wait", _) => Outcome::Wait { timeout: Some(Duration::from_hours(1)) },
            ("unreachable", 1) => Outcome::Retry { after: None, failure: failure.with_fault(Fault::Unreachable) },
            ("dead", _) => Outcome::Retry { after: None, failure },
            ("paused", 1) => Outcome::Gone { failure },
            ("cancelled", _) => std::future::pending().await,
            _ => Outcome::done(),
        }
    };
    let topics = ["done", "snooze", "wait", "unreachable", "dead", "paused", "cancelled", "expired"];
    let mut builder = daemon(&database);
    for topic in topics {
        builder = builder.handler_with(topic, one_try(topic), answer);
    }
    let running = Running::start(builder).await;
    let address = running.address().await;
    publish_many(&session, "done", 5).await;
    for topic in ["snooze", "wait", "unreachable", "dead", "paused", "cancelled"] {
        publish(&session, topic).await;
    }
    let expired = "SELECT outbox.publish('expired', '{}', expires_at => now() - interval '1 second')";
    session.client.batch_execute(expired).await.unwrap();
    running.observed("it is paused", |o| matches!(o, Observation::Paused { .. })).await;
    shows(address, "it says so", |scrape| scrape.of_handler("outboxd_paused", "paused") == 1).await;
    until("that is written", async || text(&session, "SELECT outbox.resume('paused')").await == "true").await;
    shows(address, "it runs", |scrape| scrape.of_handler("outboxd_in_flight", "cancelled") == 1).await;
    let cancel = "SELECT outbox.cancel(id, 'cancelled') FROM outbox.event WHERE topic = 'cancelled'";
    assert_eq!(text(&session, cancel).await, "true");

    let expected = [
        ("done", "done", 5),
        ("snooze", "snooze", 1),
        ("snooze", "done", 1),
        ("wait", "wait", 1),
        ("unreachable", "unreachable", 1),
        ("unreachable", "done", 1),
        ("dead", "retry", 1),
        ("dead", "dead", 1),
        ("paused", "paused", 1),
        ("paused", "done", 1),
        ("cancelled", "cancelled", 1),
    ];
    let counted = |scrape: &Scrape| {
        let of = |&(handler, outcome, count): &(&str, &str, u64)| scrape.attempts(handler, outcome) == count;
        expected.iter().all(of) && scrape.of_handler("outboxd_expired_total", "expired") == 1
    };
    shows(address, "all is counted", counted).await;
    let scrape = scrape(address).await;
    let all: u64 = scrape.series("outboxd_attempts_total").iter().map(|series| scrape.value(series)).sum();
    let written: u64 = expected.iter().map(|(_, _, count)| count).sum();
    assert_eq!((all, written), (written, 15), "and nothing else");
    for (handler, ran, queued) in [("done", 5, 5), ("snooze", 2, 1), ("dead", 2, 1), ("expired", 0, 0)] {
        assert_eq!(scrape.of_handler("outboxd_run_seconds_count", handler), ran, "{handler}");
        assert_eq!(scrape.of_handler("outboxd_queue_seconds_count", handler), queued, "{handler}");
    }
    let is = |name: &str| scrape.value(name);
    assert_eq!([is("outboxd_leader"), is("outboxd_standby"), is("outboxd_terms_total")], [1, 0, 1]);
    // The daemon's own events are events, too.
    assert!(is("outboxd_events_read_total") >= 12);
    assert_eq!((is("outboxd_listener_up"), is("outboxd_sweep_found_total")), (1, 0));
    assert!(is("outboxd_notifications_heard_total") >= 1);
    assert!(is("outboxd_batch_deliveries_sum") >= is("outboxd_batch_deliveries_count"));
    assert!(is("outboxd_batch_deliveries_sum") >= 15);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_rang_for_is_counted() {
    let database = Database::new().await;
    let session = database.session().await;
    let config = "[daemon]\npoll_interval = \"100ms\"\n";
    let builder = daemon(&database).config(Config::parse(config, "outboxd.toml", &|_| None).unwrap());
    let running = Running::start(builder.handler("all", ["#"], async |_: Event| ())).await;
    running.observed("asleep", |o| matches!(o, Observation::Asleep)).await;
    session.client.batch_execute("SET outbox.bell = off; SELECT outbox.publish('a', '{}')").await.unwrap();
    let address = running.address().await;
    shows(address, "the poll has found it", |scrape| scrape.value("outboxd_poll_found_total") == 1).await;
    running.stop().await;
}

/// Answers by path and by what is wrong with it: `/failing` 503, `/silent` nothing, until it is well.
async fn service(listener: TcpListener, well: Arc<AtomicBool>) {
    let answer = move |uri: Uri| {
        let well = well.load(Ordering::Relaxed);
        async move {
            match uri.path() {
                "/failing" if !well => StatusCode::SERVICE_UNAVAILABLE,
                "/silent" if !well => std::future::pending().await,
                _ => StatusCode::OK,
            }
        }
    };
    axum::serve(listener, Router::new().fallback(answer)).await.unwrap();
}

/// An address on which nobody listens.
async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn web(address: SocketAddr, names: &[&str]) -> String {
    let of = |name: &&str| {
        format!(
            "[handler.{name}]\ntopics = [\"a\"]\nhttp.url = \"http://{address}/{name}\"\nconcurrency = 50\n\
             timeout = \"200ms\"\nretry = {{ base = \"1ms\", max = \"5ms\", max_attempts = 1000 }}\n"
        )
    };
    names.iter().map(of).collect()
}

/// Events until every breaker is as it should be; whatever waits for its time need not.
async fn breakers(session: &Session, address: SocketAddr, expected: &[(&str, bool)]) {
    let names = expected.iter().map(|(name, open)| format!("{name}: {open}")).collect::<Vec<_>>().join(", ");
    until_within(60, &format!("the breakers are open: {names}"), async || {
        publish_many(session, "a", 5).await;
        let due = "UPDATE outbox.open SET due_at = clock_timestamp() WHERE due_at > clock_timestamp(); NOTIFY outbox";
        session.client.batch_execute(due).await.unwrap();
        let scrape = scrape(address).await;
        expected.iter().all(|(name, open)| (scrape.of_handler("outboxd_breaker_open", name) == 1) == *open)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_be_reached_opens_the_breakers_of_its_host_until_it_is_back() {
    let database = Database::new().await;
    let session = database.session().await;
    let target = nowhere().await;
    let config = web(target, &["web", "twin"]) + &web(nowhere().await, &["elsewhere"]).replace("\"a\"", "\"b\"");
    let running = start(&database, &config).await;
    let address = running.address().await;
    breakers(&session, address, &[("web", true), ("twin", true), ("elsewhere", false)]).await;
    running.stop().await;

    // After a restart it is open before anything was tried.
    session.client.batch_execute("SELECT outbox.pause('web'), outbox.pause('twin')").await.unwrap();
    let running = start(&database, &config).await;
    let address = running.address().await;
    shows(address, "they are open", |scrape| {
        ["web", "twin"].iter().all(|name| scrape.of_handler("outboxd_breaker_open", name) == 1)
    })
    .await;
    session.client.batch_execute("SELECT outbox.resume('web'), outbox.resume('twin')").await.unwrap();
    let listener = TcpListener::bind(target).await.unwrap();
    let _service = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(service(listener, Arc::default())));
    breakers(&session, address, &[("web", false), ("twin", false), ("elsewhere", false)]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_fails_or_does_not_answer_opens_the_breaker_of_its_handler_until_it_is_well() {
    let database = Database::new().await;
    let session = database.session().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (target, well) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
    let _service = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(service(listener, Arc::clone(&well))));
    let running = start(&database, &web(target, &["failing", "silent", "well"])).await;
    let address = running.address().await;
    breakers(&session, address, &[("failing", true), ("silent", true), ("well", false)]).await;
    well.store(true, Ordering::Relaxed);
    breakers(&session, address, &[("failing", false), ("silent", false), ("well", false)]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_leaves_takes_its_series_along_and_begins_at_zero_when_it_returns() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let session = database.session().await;
    let stays = format!("[handler.stays]\ntopics = [\"a\"]\n{}", gate.command());
    let both = stays.clone() + &web(nowhere().await, &["leaves"]);
    let config = ConfigFile::new(&both);
    let process = Process::run(&database, &config);
    let address = process.address().await;
    process.logged("leading").await;
    breakers(&session, address, &[("leaves", true), ("stays", false)]).await;
    config.write(&stays);
    process.signal(Signal::HUP);
    process.logged("configuration reloaded handlers=1").await;
    shows(address, "its series are gone", |scrape| scrape.series("\"leaves\"").is_empty()).await;
    assert!(scrape(address).await.attempts("stays", "done") > 0, "the other one's stay");

    config.write(&both.replace("\"a\"", "\"b\""));
    process.signal(Signal::HUP);
    process.logged("configuration reloaded handlers=2").await;
    let scrape = scrape(address).await;
    assert_eq!(scrape.series("\"leaves\"").len(), scrape.series("\"stays\"").len());
    assert_eq!(scrape.attempts("leaves", "done") + scrape.attempts("leaves", "dead"), 0);
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_ends_the_daemon_at_its_start() {
    let database = Database::new().await;
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = holder.local_addr().unwrap();
    let config = ConfigFile::new(&format!("[daemon]\nlisten = \"{taken}\"\n"));
    let output =
        outboxd(Some(&database), &["run", "--config", config.path()]).env("RUST_LOG", "info").output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let told = format!("outboxd: cannot listen on {taken}, as `listen` in [daemon] says: Address already in use");
    assert!(text.starts_with(&told) && text.lines().count() == 1, "{text}");
    assert_eq!(output.status.code(), Some(78), "systemd does not try that again");
}

#[tokio::test]
async fn there_is_no_port_when_it_is_off_or_a_program_has_not_asked_for_one() {
    let database = Database::new().await;
    let config = ConfigFile::new("[daemon]\nlisten = \"off\"\n");
    let mut process = Process::run(&database, &config);
    process.logged("leading").await;
    assert!(!process.log().contains("listening"), "{}", process.log());
    process.signal(Signal::TERM);
    process.ended().await;

    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let observer = Observer::watching(move |observation| kept.lock().unwrap().push(observation.clone()));
    let built = Daemon::builder().target(database.target()).observer(observer).build().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(built.run(stop.clone()));
    until("it leads", async || seen.lock().unwrap().contains(&Observation::Leading)).await;
    assert!(!seen.lock().unwrap().iter().any(|o| matches!(o, Observation::Listening { .. })));
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn only_what_is_asked_for_is_answered_and_the_port_ends_with_the_daemon() {
    let database = Database::new().await;
    let running = Running::start(daemon(&database)).await;
    let address = running.address().await;
    let client = outboxd::handler::http::client().unwrap();
    for path in ["/", "/metrics/", "/healthz?x", "/../metrics", "/callback", "/events", "/events/1"] {
        let expected = if path == "/healthz?x" || path == "/../metrics" { 200 } else { 404 };
        assert_eq!(get(address, path).await.0, expected, "{path}");
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        let posted = client.post(format!("http://{address}{path}")).body("x").send().await.unwrap();
        assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let found = client.get(format!("http://{address}{path}")).send().await.unwrap();
        let kind = found.headers()["content-type"].to_str().unwrap().to_owned();
        let expected =
            if path == "/metrics" { "text/plain; version=0.0.4; charset=utf-8" } else { "text/plain; charset=utf-8" };
        assert_eq!((found.status(), kind.as_str()), (StatusCode::OK, expected));
    }
    running.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_say_nothing_hold_up_nobody_for_long() {
    let database = Database::new().await;
    let running = Running::start(daemon(&database)).await;
    let address = running.address().await;
    let mut silent = Vec::new();
    for _ in 0..80 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").await.unwrap();
        silent.push(client);
    }
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".to_owned()));
    for mut client in silent {
        let mut said = Vec::new();
        // A reset is an end, too.
        let _ = client.read_to_end(&mut said).await;
        assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }
    running.stop().await;
}

#[tokio::test]
async fn a_leader_and_a_standby_are_ready_and_whoever_has_no_database_is_not() {
    let mut postgres = ThrowawayPostgres::start(Options { durable: true, settings: Vec::new() }).await.unwrap();
    migrate(&postgres.target("postgres")).await.unwrap();
    let config = ConfigFile::new("[handler.a]\ntopics = [\"a\"]\ncommand = [\"/bin/true\"]\n");
    let start = || {
        let mut command = outboxd(None, &["run", "--config", config.path()]);
        let url = format!("postgres://outboxd@/postgres?host={}", postgres.socket_dir().display());
        command.env("DATABASE_URL", url);
        Process::start(command)
    };
    let leader = start();
    leader.logged("leading").await;
    let standby = start();
    standby.logged("standing by").await;
    let addresses = [leader.address().await, standby.address().await];
    let answers = async |path: &'static str| [get(addresses[0], path).await, get(addresses[1], path).await];
    let ok = |text: &str| (200, format!("{text}\n"));
    until("the listener is proven, and the log was read", async || {
        let [(status, text), standby] = answers("/readyz").await;
        assert_eq!(standby, ok("standing by"));
        status == 200 && text.starts_with("leading; the bell was heard ") && !text.contains("not yet")
    })
    .await;
    let scrape_both = async || {
        let both = [scrape(addresses[0]).await, scrape(addresses[1]).await];
        both.map(|scrape| ["outboxd_leader", "outboxd_standby"].map(|name| scrape.value(name) == 1))
    };
    assert_eq!(scrape_both().await, [[true, false], [false, true]]);

    postgres.crash().await.unwrap();
    until("neither is ready", async || {
        answers("/readyz").await.iter().all(|(status, text)| {
            assert_eq!(text.lines().count(), 1, "{text:?}");
            *status == 503 && text.starts_with("connecting again: ")
        })
    })
    .await;
    assert_eq!(answers("/healthz").await, [ok("ok"), ok("ok")], "an outage of PostgreSQL is no hang of the daemon");
    assert_eq!(scrape_both().await, [[false; 2]; 2]);

    postgres.start_again().await.unwrap();
    until("one leads, the other stands by", async || {
        let mut answers = answers("/readyz").await;
        answers.sort();
        answers[0].1.starts_with("leading; ") && answers[1] == ok("standing by")
    })
    .await;
    let terms = async |address| scrape(address).await.value("outboxd_terms_total");
    assert_eq!(terms(addresses[0]).await + terms(addresses[1]).await, 2);
    drop((leader, standby));
    postgres.stop().await.unwrap();
}
