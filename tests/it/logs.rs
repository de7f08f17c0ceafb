//! The daemon's log: whatever the format, a line about a delivery says which one, which attempt and which trace; and no line says what
//! nobody should read there.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri};
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::harness::{Collector, ConfigFile, Database, Process, cluster, outboxd, outboxd_output, text, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// Every secret there is, and what an app would not want to read in a log.
const SECRETS: [&str; 9] = [
    "pw-of-the-database",
    "c2lnbmluZy1rZXktc2lnbmluZy1rZXktc2lnbmluZy1rZXk",
    "signing-key",
    "secret-of-a-header",
    "secret-of-a-command",
    "secret-of-the-receiver",
    "text-of-the-payload",
    "text-of-a-header",
    "text-of-the-result",
];

/// A web service that takes a callback for `/later`, and refuses the first attempt of all else.
async fn service() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let callbacks = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&callbacks);
    let router = Router::new().fallback(async move |uri: Uri, headers: HeaderMap| {
        if uri.path() == "/later" {
            kept.lock().unwrap().push(headers["outbox-callback"].to_str().unwrap().to_owned());
            return (StatusCode::ACCEPTED, [("outbox-outcome", "wait")]);
        }
        let status = if headers["outbox-attempt"] == "1" { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::OK };
        (status, [("outbox-outcome", "none")])
    });
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, callbacks)
}

/// A daemon that has secrets of every kind and is given a payload.
fn configured(service: &str, collector: &Collector) -> ConfigFile {
    ConfigFile::new(&format!(
        r##"
[traces]
endpoint = "{}"
headers = {{ Authorization = "Bearer ${{RECEIVER}}" }}
[handler.once-more]
topics = ["#"]
http = {{ url = "{service}/again?token=secret-of-a-header", secret = "whsec_${{SIGNING}}", headers = {{ Authorization = "${{HEADER}}" }} }}
retry = {{ base = "1ms", max = "1ms" }}
[handler.later]
topics = ["#"]
http.url = "{service}/later"
callback = true
[handler.command]
topics = ["#"]
command = ["/bin/sh", "-c", '''cat; exit 65''']
env = {{ TOKEN = "${{COMMAND}}" }}
[handler.sql]
topics = ["#"]
sql = "app.f"
"##,
        collector.endpoint
    ))
}

fn with_secrets(database: &Database, config: &ConfigFile, arguments: &[&str]) -> Command {
    let mut command = outboxd(None, &[&["run", "--config", config.path()], arguments].concat());
    let host = cluster().socket_dir().display();
    let url = format!("postgres://outboxd:pw-of-the-database@/{}?host={host}", database.name());
    command.env("DATABASE_URL", url).env("RECEIVER", "secret-of-the-receiver").env("HEADER", "secret-of-a-header");
    command.env("SIGNING", "c2lnbmluZy1rZXktc2lnbmluZy1rZXktc2lnbmluZy1rZXk=").env("COMMAND", "secret-of-a-command");
    command
}

/// Runs an event through the daemon, and a callback; returns the log, and the token of the callback.
async fn story(arguments: &[&str], level: Option<&str>) -> (String, String) {
    let database = Database::new().await;
    let session = database.session().await;
    let function = "CREATE SCHEMA app; CREATE FUNCTION app.f(outbox.event) RETURNS jsonb LANGUAGE sql AS \
                    $$ SELECT '\"text-of-the-result\"'::jsonb $$";
    session.client.batch_execute(function).await.unwrap();
    let (collector, (service, callbacks)) = (Collector::start().await, service().await);
    let config = configured(&service, &collector);
    let mut process = Process::start_at(with_secrets(&database, &config, arguments), level);
    process.logged("leading").await;
    let insert = format!(
        "INSERT INTO outbox.event (topic, payload, headers) VALUES ('a', '\"text-of-the-payload\"', \
         '{{\"traceparent\": \"00-{TRACE}-00f067aa0ba902b7-01\", \"tenant\": \"text-of-a-header\"}}')"
    );
    session.client.batch_execute(&insert).await.unwrap();
    until("somebody waits for a callback", async || {
        text(&session, "SELECT string_agg(handler || ' ' || state, ', ' ORDER BY handler) FROM outbox.delivery").await
            == "command dead, later waiting, once-more done, sql done"
    })
    .await;
    let callback = callbacks.lock().unwrap()[0].clone();
    let client = outboxd::handler::http::client().unwrap();
    let answer = r#"{"outcome": "done", "result": "text-of-the-result"}"#;
    assert_eq!(client.post(&callback).body(answer).send().await.unwrap().status(), 200);
    // One that is forged, and what is asked of the daemon, leave no trace of what they say either.
    assert_eq!(client.post(format!("{callback}x")).body(answer).send().await.unwrap().status(), 404);
    process.logged("answered by a callback").await;
    process.signal(Signal::HUP);
    process.logged("configuration reloaded").await;
    process.signal(Signal::TERM);
    assert!(process.ended().await.success());
    process.logged("stopped").await;
    (process.log(), callback.rsplit('/').next().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_payload_is_in_the_log() {
    for level in [None, Some("outboxd=debug"), Some("debug")] {
        let (log, token) = story(&[], level).await;
        for secret in SECRETS.iter().copied().chain([token.as_str()]) {
            let line = log.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{level:?}: {secret} is in the log");
        }
        // What it says is about the deliveries.
        let dead = log.lines().find(|line| line.contains("dead; ")).unwrap();
        for field in ["event=1 ", "handler=command ", "attempt=1 ", &format!("trace_id={TRACE} ")] {
            assert!(dead.contains(field), "{field} is not in {dead}");
        }
        assert_eq!(level.is_some(), log.contains("done event="), "{level:?}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_about_a_delivery_has_its_event_handler_attempt_and_trace() {
    let (log, _) = story(&["--log-format", "json"], Some("outboxd=debug")).await;
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let about: Vec<&Value> = lines.iter().filter(|line| line.get("event").is_some()).collect();
    let mut said = Vec::new();
    for line in about {
        assert_eq!((&line["event"], &line["trace_id"]), (&"1".into(), &TRACE.into()), "{line}");
        assert!(line["handler"].is_string() && line["attempt"].is_u64(), "{line}");
        said.push(line["message"].as_str().unwrap());
    }
    said.sort_unstable();
    let dead = "dead; `outboxd retry` runs it again";
    let all = ["answered by a callback", "attempt failed, will run again", dead, "done", "done", "waits for an answer"];
    assert_eq!(said, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_journal_it_says_so() {
    let config = ConfigFile::new("");
    let arguments = ["run", "--config", config.path(), "--log-format", "journald"];
    if std::path::Path::new("/run/systemd/journal/socket").exists() {
        // Then it starts, and finds no database.
        let output =
            outboxd_output(None, &[&arguments[..], &["--database-url", "postgres://127.0.0.1:1/x"]].concat()).await;
        assert!(!output.status.success() && output.stderr.starts_with(b"outboxd: "), "{output:?}");
        return;
    }
    let output = outboxd_output(None, &arguments).await;
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--log-format journald: there is no journal here: "), "{said}");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn the_journal_gets_each_field_by_itself() {
    use crate::harness::{Folder, Shim, publish, url};

    let database = Database::new().await;
    let session = database.session().await;
    let folder = Folder::new();
    let (shim, socket) = (Shim::new(folder.path()), folder.path().join("journal"));
    let journal = tokio::net::UnixDatagram::bind(&socket).unwrap();
    let config = ConfigFile::new("[handler.a]\ntopics = [\"#\"]\ncommand = [\"/bin/sh\", \"-c\", \"exit 65\"]\n");
    let mut command = outboxd(None, &["run", "--config", config.path(), "--log-format", "journald"]);
    command.env("DATABASE_URL", url(&database)).envs(shim.journal(&socket));
    let mut process = Process::start(command);
    publish(&session, "a").await;
    let mut entry = vec![0; 65_536];
    let entry = loop {
        let size = tokio::time::timeout(std::time::Duration::from_secs(20), journal.recv(&mut entry));
        let size = size.await.expect("the journal is told that it is dead").unwrap();
        // A field with a line break in it has its length before it; these have none.
        let entry = String::from_utf8_lossy(&entry[..size]).into_owned();
        if entry.contains("dead; ") {
            break entry;
        }
    };
    for field in [
        "PRIORITY",
        "SYSLOG_IDENTIFIER",
        "MESSAGE",
        "OUTBOXD_EVENT",
        "OUTBOXD_HANDLER",
        "OUTBOXD_ATTEMPT",
        "OUTBOXD_ERROR",
    ] {
        assert!(entry.lines().any(|line| line == field || line.starts_with(&format!("{field}="))), "{field}: {entry}");
    }
    assert_eq!(process.log(), "", "nothing of it goes to stderr");
    process.signal(Signal::TERM);
    assert!(process.ended().await.success());
}
