//! Webhooks to whoever an event names: what is private stays so, one bad address holds up nobody, keys are exchanged while events
//! flow, and no secret is seen anywhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri};
use outboxd::Observation;
use outboxd::postgres::Session;
use rustix::process::Signal;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::net::TcpListener;

use crate::handlers::{history, start};
use crate::harness::{
    ConfigFile, Database, Folder, Process, deliveries, done, outboxd, outboxd_output, publish, text, texts, until,
};

/// What customers were sent, by path.
type Seen = Arc<Mutex<BTreeMap<String, Vec<(HeaderMap, String)>>>>;

/// The servers of the customers, as one: `/gone` is 410, `/missing` is 404, `/broken` is 500, the rest is well.
async fn customers() -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Seen::default());
    let kept = Arc::clone(&seen);
    let answer = move |uri: Uri, headers: HeaderMap, body: String| {
        kept.lock().unwrap().entry(uri.to_string()).or_default().push((headers, body));
        async move {
            match uri.path().rsplit('/').next() {
                Some("gone") => StatusCode::GONE,
                Some("missing") => StatusCode::NOT_FOUND,
                Some("broken") => StatusCode::INTERNAL_SERVER_ERROR,
                _ => StatusCode::OK,
            }
        }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    (address, seen)
}

async fn send(session: &Session, payload: &Value) -> i64 {
    let query = "SELECT outbox.publish('hook', $1::text::jsonb, key => 'order 7/8')";
    session.client.query_one(query, &[&payload.to_string()]).await.unwrap().get(0)
}

async fn endpoint(session: &Session, url: &str) -> i64 {
    send(session, &json!({ "endpoint": url })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_goes_where_it_says_and_nowhere_private() {
    let database = Database::new().await;
    let session = database.session().await;
    let (address, seen) = customers().await;
    let port = address.port();
    let retry = "retry = { max_attempts = 3, base = \"1ms\", max = \"1ms\" }";
    let config = format!(
        "[handler.hooks]\ntopics = [\"hook\"]\n{retry}\nhttp = {{ url = \"{{payload.endpoint}}\", allow = [\"127.0.0.0/8\"] }}\n\
         [handler.closed]\ntopics = [\"hook\"]\n{retry}\nhttp.url = \"{{payload.endpoint}}\"\n\
         [handler.path]\ntopics = [\"hook\"]\n{retry}\nhttp.url = \"http://{address}/{{topic}}/{{key}}?id={{id}}\"\n"
    );
    let running = start(&database, &config).await;
    let well = endpoint(&session, &format!("http://0x7f000001:{port}/well?token=1#x")).await;
    let gone = endpoint(&session, &format!("http://{address}/gone")).await;
    let metadata = endpoint(&session, "http://169.254.169.254/latest/meta-data/").await;
    let missing = send(&session, &json!({})).await;
    let name = endpoint(&session, &format!("http://localhost:{port}/by-name")).await;
    for (event, hooks) in
        [(well, "done|1"), (gone, "dead|1"), (metadata, "dead|1"), (missing, "dead|1"), (name, "done|1")]
    {
        let expected = ["closed|dead|1".to_owned(), format!("hooks|{hooks}"), "path|done|1".to_owned()];
        until("each has its end", async || deliveries(&session, event).await == expected).await;
        let path = format!("/hook/order%207%2F8?id={event}");
        assert_eq!(seen.lock().unwrap()[&path].len(), 1, "{path}");
    }
    let seen: Vec<String> = seen.lock().unwrap().keys().filter(|path| !path.starts_with("/hook/")).cloned().collect();
    assert_eq!(seen, ["/by-name", "/gone", "/well?token=1"]);
    let error = async |event: i64, handler: &str| {
        let query = format!("SELECT error FROM outbox.attempt WHERE event_id = {event} AND handler = '{handler}'");
        text(&session, &query).await
    };
    let refused = "a URL from an event leads there only if `allow` has it";
    assert_eq!(
        error(metadata, "hooks").await,
        "POST http://169.254.169.254/latest/meta-data/: 169.254.169.254 is link-local, where clouds keep their metadata \
         (169.254.0.0/16); "
            .to_owned()
            + refused
    );
    let named = error(name, "closed").await;
    assert!(named.starts_with(&format!("POST http://localhost:{port}/by-name: localhost leads to ")), "{named}");
    assert!(named.ends_with(refused) && named.contains(", which is loopback"), "{named}");
    assert_eq!(
        error(missing, "hooks").await,
        "{payload.endpoint} is missing in this event; the URL needs a text or a number"
    );
    assert_eq!(error(gone, "hooks").await, format!("POST http://{address}/gone: 410 Gone"));
    assert_eq!(
        texts(&session, "SELECT name FROM outbox.handler WHERE paused_at IS NOT NULL").await,
        [""; 0],
        "only one customer is gone"
    );
    running.stop().await;
}

/// Half of all events are for customers whose servers are away or broken. Nothing but these suffers, and they do by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn customers_that_are_away_hold_up_nobody_else() {
    let database = Database::new().await;
    let session = database.session().await;
    let (address, seen) = customers().await;
    // Nobody listens there.
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = "[handler.hooks]\ntopics = [\"hook\"]\nconcurrency = 4\n\
                  retry = { max_attempts = 3, base = \"1ms\", max = \"1ms\" }\n\
                  http = { url = \"{payload.endpoint}\", allow = [\"127.0.0.1/32\"] }\n";
    let running = start(&database, config).await;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for n in 0..100 {
        good.push(endpoint(&session, &format!("http://{address}/{n}")).await);
        let there = if n % 2 == 0 { format!("http://{away}/") } else { format!("http://{address}/broken") };
        bad.push(endpoint(&session, &there).await);
    }
    until("all the good ones have theirs", async || done(&session, "hooks").await == good).await;
    let dead = "SELECT event_id FROM outbox.open WHERE state = 'dead' AND failures = 3 ORDER BY 1";
    let ids: Vec<String> = bad.iter().map(ToString::to_string).collect();
    until("the bad ones have spent their attempts", async || texts(&session, dead).await == ids).await;
    assert!(history(&session, bad[0]).await.iter().all(|attempt| attempt.contains("Connection refused")));
    assert!(history(&session, bad[1]).await.iter().all(|attempt| attempt.contains("500 Internal Server Error")));
    assert!((0..100).all(|n| seen.lock().unwrap()[&format!("/{n}")].len() == 1), "each once");
    assert_eq!(running.count(|o| matches!(o, Observation::BreakerOpened { .. })), 0);
    assert_eq!(text(&session, "SELECT breaker FROM outbox.handler").await, "closed");
    running.stop().await;
}

/// A key that outboxd has from a file, and the library with which a customer checks it.
fn key(byte: u8) -> (String, Webhook) {
    let letter = char::from(byte).to_string().repeat(32);
    (format!("whsec_{letter}"), Webhook::new(&letter).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_exchanged_while_the_daemon_runs() {
    let (database, folder) = (Database::new().await, Folder::new());
    let session = database.session().await;
    let (address, seen) = customers().await;
    let ([old, new], files) = ([key(b'o'), key(b'n')], ["old", "new"].map(|name| folder.path().join(name)));
    std::fs::write(&files[0], &old.0).unwrap();
    std::fs::write(&files[1], format!("{}\n", new.0)).unwrap();
    let [of_old, of_new] = files.map(|file| format!("\"${{file:{}}}\"", file.display()));
    let config = |secret: &str| {
        format!("[handler.hooks]\ntopics = [\"a\"]\nhttp = {{ url = \"http://{address}/hooks\", secret = {secret} }}\n")
    };
    let file = ConfigFile::new(&config(&of_old));
    let daemon = Process::run(&database, &file);
    daemon.logged("leading").await;
    let verified = async || {
        let event = publish(&session, "a").await;
        until("it is delivered", async || done(&session, "hooks").await.contains(&event)).await;
        let seen = seen.lock().unwrap();
        let (headers, body) = seen["/hooks"].last().unwrap();
        [&old, &new].map(|(_, webhook)| webhook.verify(body.as_bytes(), headers).is_ok())
    };
    assert_eq!(verified().await, [true, false]);
    for (reloads, secret, expected) in
        [(1, format!("[{of_new}, {of_old}]"), [true, true]), (2, format!("[{of_new}]"), [false, true])]
    {
        file.write(&config(&secret));
        daemon.signal(Signal::HUP);
        daemon.logged_times("configuration reloaded handlers=1", reloads).await;
        assert_eq!(verified().await, expected, "{secret}");
    }
    // What stands in the file is read again, too.
    std::fs::write(folder.path().join("new"), &old.0).unwrap();
    daemon.signal(Signal::HUP);
    daemon.logged_times("configuration reloaded handlers=1", 3).await;
    assert_eq!(verified().await, [true, false]);
}

/// Every row of every table of the schema, as text.
async fn everything(session: &Session) -> String {
    let tables =
        texts(session, "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'outbox'");
    let mut all = String::new();
    for table in tables.await {
        all += &texts(session, &format!("SELECT t::text FROM {table} t")).await.join("\n");
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_seen_by_anybody_but_the_target() {
    let (database, folder) = (Database::new().await, Folder::new());
    let session = database.session().await;
    let (address, seen) = customers().await;
    let (signing, webhook) = key(b's');
    let [variable, credential, in_file] = ["variable-hunter2", "credential-hunter2", "file-hunter2"];
    for (name, secret) in [("SIGNING", &*signing), ("CREDENTIAL", credential), ("file", in_file)] {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{secret}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let file = format!("${{file:{}}}", folder.path().join("file").display());
    let url = |path: &str| format!("\"http://{address}/${{VARIABLE}}/{path}?a=${{CREDENTIAL}}&b={file}\"");
    let headers = format!("{{ Authorization = \"Bearer {file}\" }}");
    let http =
        |path: &str| format!("http = {{ url = {}, secret = \"${{SIGNING}}\", headers = {headers} }}\n", url(path));
    let text = ["well", "missing", "broken", "{key}"].map(|path| {
        let name = path.trim_matches(['{', '}']);
        format!("[handler.{name}]\ntopics = [\"#\"]\nretry.max_attempts = 1\n{}", http(path))
    });
    // A program's arguments are seen by everybody, so what it is to know stands in its environment.
    let program = "[handler.program]\ntopics = [\"#\"]\ncommand = [\"sh\", \"-c\", \"tr '\\\\0' ' ' < /proc/$PPID/cmdline; test -n \\\"$TOKEN\\\"\"]\n\
                   env = { TOKEN = \"${VARIABLE}\" }\n";
    let config = ConfigFile::new(&(text.concat() + program));
    let with_secrets = |arguments: &[&str]| {
        let mut command = outboxd(Some(&database), arguments);
        command.env("VARIABLE", variable).env("CREDENTIALS_DIRECTORY", folder.path());
        command
    };
    let daemon = Process::start(with_secrets(&["run", "--config", config.path()]));
    daemon.logged("leading").await;
    let event = send(&session, &json!({ "a": 1 })).await;
    let ends = ["broken|dead|1", "key|done|1", "missing|dead|1", "program|done|1", "well|done|1"];
    until("each has its end", async || deliveries(&session, event).await == ends).await;

    let query = format!("?a={credential}&b={in_file}");
    let (headers, body) = seen.lock().unwrap()[&format!("/{variable}/well{query}")][0].clone();
    webhook.verify(body.as_bytes(), &headers).unwrap();
    assert_eq!(headers["authorization"], format!("Bearer {in_file}"));
    assert!(seen.lock().unwrap().contains_key(&format!("/{variable}/order%207%2F8{query}")));

    let check = |arguments: &'static [&'static str]| {
        let mut command = with_secrets(arguments);
        command.args(["--config", config.path()]);
        async move {
            let output = command.output().await.unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
        }
    };
    let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", daemon.pid().as_raw_nonzero())).unwrap();
    let status = outboxd_output(Some(&database), &["show", &event.to_string()]).await;
    for (place, text) in [
        ("ps", arguments),
        ("check", check(&["check"]).await),
        ("check --print-config", check(&["check", "--print-config"]).await),
        ("show", String::from_utf8(status.stdout).unwrap()),
        ("the database", everything(&session).await),
        ("the log", daemon.log()),
    ] {
        assert!(!text.is_empty(), "{place}");
        for secret in [variable, credential, in_file, &signing, &signing[6..]] {
            assert!(!text.contains(secret), "{place}: {secret} in {text}");
        }
    }
    let error = history(&session, event).await;
    assert!(error.iter().any(|error| error.ends_with("/${VARIABLE}/missing: 404 Not Found")), "{error:?}");
}

#[tokio::test]
async fn a_secret_that_is_missing_or_unreadable_stops_the_daemon_at_its_start() {
    let config = ConfigFile::new(
        "[handler.a]\ntopics = [\"a\"]\nhttp = { url = \"http://localhost\", secret = \"${file:/nonexistent/key}\" }\n",
    );
    let output = outboxd(None, &["run", "--config", config.path()]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("handler.a.http.secret: ${file:/nonexistent/key} cannot be read"), "{said}");
}
