//! Handlers as the configuration writes them: what they answer decides what becomes of the delivery.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri};
use outboxd::config::DeliveryConfig;
use outboxd::event::Attempt;
use outboxd::{Config, Event, RetryPolicy};

use crate::harness::{Database, Gate, Running, daemon, deliveries, publish, texts, until};

/// A daemon with the handlers of this configuration.
pub(crate) async fn start(database: &Database, config: &str) -> Running {
    let config = Config::parse(config, "outboxd.toml", &|_| None).unwrap();
    Running::start(daemon(database).config(config)).await
}

/// Retries that come at once, five attempts in all.
pub(crate) const QUICK: &str = "retry = { max_attempts = 5, base = \"1ms\", max = \"1ms\" }";

/// `outcome error` of every attempt of an event.
pub(crate) async fn history(session: &outboxd::postgres::Session, event: i64) -> Vec<String> {
    let query = "SELECT concat_ws(' ', outcome, error) FROM outbox.attempt WHERE event_id = ";
    texts(session, &format!("{query}{event} ORDER BY attempt")).await
}

/// What a server was sent, request by request.
type Seen = Arc<Mutex<Vec<(HeaderMap, String)>>>;

/// A server that answers by path: `/500-then-200` fails the first time, `/never` never answers, `/404` is 404.
async fn server() -> (String, Seen) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Seen::default();
    let kept = Arc::clone(&seen);
    let answer = move |uri: Uri, headers: HeaderMap, body: String| {
        let first = headers["outbox-attempt"] == "1";
        kept.lock().unwrap().push((headers, body));
        async move {
            match uri.path() {
                "/500-then-200" if first => StatusCode::INTERNAL_SERVER_ERROR,
                "/never-then-200" if first => std::future::pending().await,
                "/404" => StatusCode::NOT_FOUND,
                _ => StatusCode::OK,
            }
        }
    };
    let router = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_status_decides_what_becomes_of_a_delivery() {
    let database = Database::new().await;
    let session = database.session().await;
    let (url, seen) = server().await;
    let paths = ["200", "500-then-200", "404", "never-then-200"];
    let config = paths.map(|path| {
        format!("[handler.{path}]\ntopics = [\"#\"]\nhttp.url = \"{url}/{path}\"\ntimeout = \"300ms\"\n{QUICK}\n")
    });
    let running = start(&database, &config.concat()).await;
    let publish = "SELECT outbox.publish('user.registered', '{\"name\": \"Ada\"}', key => 'ada')";
    session.client.batch_execute(publish).await.unwrap();
    until("each has its end", async || {
        deliveries(&session, 1).await == ["200|done|1", "404|dead|1", "500-then-200|done|2", "never-then-200|done|2"]
    })
    .await;
    let errors =
        "SELECT replace(handler || ': ' || error, 'URL', '') FROM outbox.attempt WHERE error IS NOT NULL ORDER BY 1";
    let errors: Vec<String> = texts(&session, errors).await.iter().map(|error| error.replace(&url, "URL")).collect();
    assert_eq!(
        errors,
        [
            "404: POST URL/404: 404 Not Found",
            "500-then-200: POST URL/500-then-200: 500 Internal Server Error",
            "never-then-200: timed out after 300ms"
        ]
    );
    let seen = seen.lock().unwrap().clone();
    let (headers, body) = seen.iter().find(|(headers, _)| headers["outbox-handler"] == "200").unwrap();
    assert_eq!(body, "{\"name\": \"Ada\"}");
    assert!(headers["ce-type"] == "user.registered" && headers["ce-subject"] == "ada", "{headers:?}");
    let keys: Vec<_> = seen.iter().filter(|(h, _)| h["outbox-handler"] == "500-then-200").collect();
    assert_eq!(keys[0].0["idempotency-key"], keys[1].0["idempotency-key"], "one key for every attempt");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_of_a_command_decides_what_becomes_of_a_delivery() {
    let database = Database::new().await;
    let session = database.session().await;
    let script = |name: &str, script: &str| {
        format!(
            "[handler.{name}]\ntopics = [\"#\"]\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\n\
             timeout = \"2s\"\n{QUICK}\n"
        )
    };
    let config = [
        script("done", "cat"),
        script("tempfail", "[ $OUTBOX_ATTEMPT = 2 ] || { echo warming up >&2; exit 75; }"),
        script("dataerr", "exit 65"),
        script("fails", "exit 3"),
        script("killed", "[ $OUTBOX_ATTEMPT = 2 ] || kill -9 $$"),
        script("answers", r#"echo '{"outcome": "dead", "error": "no such user"}'"#),
    ];
    let missing = format!("[handler.missing]\ntopics = [\"#\"]\ncommand = [\"/nonexistent/program\"]\n{QUICK}\n");
    let running = start(&database, &(config.concat() + &missing)).await;
    let publish = "SELECT outbox.publish('user.registered', '{\"name\": \"Ada\"}')";
    session.client.batch_execute(publish).await.unwrap();
    let expected =
        ["answers|dead|1", "dataerr|dead|1", "done|done|1", "fails|dead|5", "killed|done|2", "tempfail|done|2"];
    until("each has its end", async || {
        let mut deliveries = deliveries(&session, 1).await;
        deliveries.retain(|delivery| !delivery.starts_with("missing|"));
        deliveries == expected
    })
    .await;
    // A program that is not there says nothing about the event: more attempts than it has, and none of them spent.
    let missing = "SELECT failures FROM outbox.open WHERE handler = 'missing' AND attempt > 5";
    until("the missing program is tried again", async || texts(&session, missing).await == ["0"]).await;
    let errors = "SELECT DISTINCT handler || ': ' || error || coalesce(', said ' || trim(E'\\n' FROM response), '') \
                  FROM outbox.attempt WHERE error IS NOT NULL ORDER BY 1";
    assert_eq!(
        texts(&session, errors).await,
        [
            "answers: no such user, said {\"outcome\": \"dead\", \"error\": \"no such user\"}",
            "dataerr: exit code 65",
            "fails: exit code 3",
            "killed: killed by signal 9 (SIGKILL)",
            "missing: cannot run \"/nonexistent/program\": No such file or directory (os error 2)",
            "tempfail: exit code 75, said warming up",
        ]
    );
    let result = texts(&session, "SELECT result FROM outbox.done WHERE handler = 'done'").await;
    assert_eq!(result, ["{\"name\": \"Ada\"}"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_takes_too_long_is_killed_and_runs_again() {
    let (database, mut gate) = (Database::new().await, Gate::closed());
    let session = database.session().await;
    let config = format!("[handler.slow]\ntopics = [\"#\"]\ntimeout = \"200ms\"\n{}", gate.command());
    let running = start(&database, &config).await;
    let event = publish(&session, "a").await;
    gate.begun(1).await;
    let first = gate.last_pid();
    until("it is cut off", async || history(&session, event).await.contains(&"retry timed out after 200ms".to_owned()))
        .await;
    until("it is killed", async || !crate::harness::lives(first)).await;
    assert!(gate.events("end").is_empty());
    gate.open();
    until("it runs again", async || deliveries(&session, event).await[0].starts_with("slow|done|")).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_in_rust_that_panics_or_takes_too_long_has_failed_and_harms_nobody() {
    let database = Database::new().await;
    let session = database.session().await;
    let retry = RetryPolicy {
        max_attempts: 2,
        base: std::time::Duration::from_millis(1),
        max: std::time::Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    let twice = DeliveryConfig {
        retry,
        timeout: std::time::Duration::from_millis(100),
        ..DeliveryConfig::new(vec!["#".parse().unwrap()])
    };
    let running = Running::start(
        daemon(&database)
            .handler("good", ["#"], async |_: Event| ())
            .handler_with("panics", twice.clone(), async |attempt: Attempt| {
                assert!(attempt.number == 0, "no attempt is {}", attempt.number);
            })
            .handler_with("panics_early", twice.clone(), |attempt: Attempt| {
                assert!(attempt.number > 1, "not yet");
                async {}
            })
            .handler_with("hangs", twice, async |_| std::future::pending::<()>().await),
    )
    .await;
    let event = publish(&session, "a").await;
    until("each has its end", async || {
        deliveries(&session, event).await == ["good|done|1", "hangs|dead|2", "panics_early|done|2", "panics|dead|2"]
    })
    .await;
    let errors =
        "SELECT handler || ': ' || error FROM outbox.attempt WHERE error IS NOT NULL ORDER BY handler, attempt";
    assert_eq!(
        texts(&session, errors).await,
        [
            "hangs: timed out after 100ms",
            "hangs: timed out after 100ms",
            "panics: the handler panicked: no attempt is 1",
            "panics: the handler panicked: no attempt is 2",
            "panics_early: the handler panicked: not yet",
        ]
    );
    let event = publish(&session, "a").await;
    until("the good one goes on", async || deliveries(&session, event).await.contains(&"good|done|1".to_owned())).await;
    running.stop().await;
}
