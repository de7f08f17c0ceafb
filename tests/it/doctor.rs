//! Ten breakdowns, and what the doctor says of each: the cause and the remedy.

use axum::Router;
use axum::http::StatusCode;
use outboxd::postgres::{Session, ThrowawayPostgres};
use serde_json::Value;

use crate::harness::proxy::{Fault, Proxy};
use crate::harness::{
    ConfigFile, Database, Gate, Process, Shim, deliveries, outboxd, publish, publish_many, text, until, url,
};

/// What was found, as `level: what -> remedy`.
async fn doctor(mut command: tokio::process::Command) -> (i32, Vec<String>) {
    let output = command.output().await.unwrap();
    let json: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let line = |f: &Value| format!("{}: {} -> {}", text(f, "level"), text(f, "what"), text(f, "remedy"));
    (output.status.code().unwrap(), json["findings"].as_array().unwrap().iter().map(line).collect())
}

/// That it finds one problem that says all of this, and ends with 1.
#[track_caller]
fn finds((code, findings): &(i32, Vec<String>), says: &[&str]) {
    let problem = findings.iter().any(|f| f.starts_with("problem: ") && says.iter().all(|text| f.contains(text)));
    assert!(problem && *code == 1, "{code}: no problem says {says:?} among\n{}", findings.join("\n"));
}

fn command(database: &Database, config: &ConfigFile) -> tokio::process::Command {
    outboxd(Some(database), &["doctor", "--json", "--config", config.path()])
}

/// A daemon with these handlers, and where they are written.
async fn started(database: &Database, handlers: &str) -> (Process, ConfigFile) {
    let config = ConfigFile::new(handlers);
    let process = Process::run(database, &config);
    process.logged("leading").await;
    // The doctor finds the daemon's port, which the system has chosen.
    let listen = format!("[daemon]\nlisten = \"{}\"\n{handlers}", process.address().await);
    (process, ConfigFile::verbatim(&listen))
}

const TRUE: &str = "[handler.mail]\ntopics = [\"a\"]\ncommand = [\"/bin/true\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_wrong_it_says_so_to_people_and_programs() {
    let database = Database::new().await;
    let (_daemon, config) = started(&database, TRUE).await;
    let (code, findings) = doctor(command(&database, &config)).await;
    let wrong: Vec<&String> = findings.iter().filter(|f| !f.starts_with("ok: ")).collect();
    assert!(code == 0 && wrong.is_empty(), "{findings:#?}");
    let output = outboxd(Some(&database), &["doctor", "--config", config.path()]).output().await.unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    for line in
        ["ok       the schema is up to date\n", "ok       nothing is dead\n", "ok       a notification comes back\n"]
    {
        assert!(told.contains(line), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_target() {
    let database = Database::new().await;
    let session = database.session().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = listener.local_addr().unwrap();
    drop(listener);
    let handler = format!("[handler.mail]\ntopics = [\"a\"]\nhttp.url = \"http://{gone}/\"\n");
    let (daemon, config) = started(&database, &handler).await;
    publish_many(&session, "a", 20).await;
    daemon.logged("breaker opened").await;
    until("the breaker is in the database", async || {
        text(&session, "SELECT breaker FROM outbox.handler").await == "open"
    })
    .await;
    let found = doctor(command(&database, &config)).await;
    finds(
        &found,
        &["mail: its target cannot be reached", "Connection refused", "wait, the oldest for", "mend the target"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret() {
    let database = Database::new().await;
    let session = database.session().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let refuses = Router::new().fallback(async || StatusCode::UNAUTHORIZED);
    tokio::spawn(async move { axum::serve(listener, refuses).await.unwrap() });
    let handler = format!("[handler.mail]\ntopics = [\"a\"]\nhttp.url = \"{url}\"\n");
    let (_daemon, config) = started(&database, &handler).await;
    let event = publish(&session, "a").await;
    until("it is dead", async || deliveries(&session, event).await == ["mail|dead|1"]).await;
    let found = doctor(command(&database, &config)).await;
    finds(
        &found,
        &["mail: 1 dead", "401 Unauthorized", "refuses the credentials", "`secret`", "redrive --handler mail"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_is_gone_and_one_that_is_disabled() {
    let database = Database::new().await;
    let session = database.session().await;
    let (_daemon, config) = started(&database, TRUE).await;
    let wrong = "DROP TRIGGER ring ON outbox.event; ALTER TABLE outbox.event DISABLE TRIGGER remember_dedup_key";
    session.client.batch_execute(wrong).await.unwrap();
    let found = doctor(command(&database, &config)).await;
    finds(&found, &["the trigger `remember_dedup_key`", "is disabled", "ENABLE TRIGGER remember_dedup_key"]);
    finds(&found, &["the trigger `ring` on outbox.event is not there", "CREATE TRIGGER ring AFTER INSERT"]);
    // What it says to do mends it.
    let remedy = found.1.iter().find_map(|f| f.split_once("-> CREATE")).unwrap().1;
    session.client.batch_execute(&format!("CREATE{remedy}")).await.unwrap();
    let (_, findings) = doctor(command(&database, &config)).await;
    assert!(!findings.iter().any(|f| f.contains("`ring`")), "{findings:#?}");
}

/// The age of a transaction in this session, for longer than which the doctor is told that it is unusual.
async fn open_transaction(database: &Database) -> Session {
    let session = database.session().await;
    session.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM outbox.handler").await.unwrap();
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_holds_up_the_cleaning() {
    let database = Database::new().await;
    let (_daemon, config) = started(&database, TRUE).await;
    let holder = open_transaction(&database).await;
    let pid = text(&holder, "SELECT pg_backend_pid()").await;
    let find = async |lasting: &str| {
        doctor(outboxd(Some(&database), &["doctor", "--json", "--lasting", lasting, "--config", config.path()])).await
    };
    let (code, findings) = find("1h").await;
    assert!(code == 0 && !findings.iter().any(|f| f.contains("cleaning up")), "{findings:#?}");
    let found = find("1ms").await;
    finds(
        &found,
        &[&format!("session {pid} "), "keeps PostgreSQL from cleaning up", &format!("pg_terminate_backend({pid})")],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_is_deaf() {
    let database = Database::new().await;
    let config = ConfigFile::new(TRUE);
    let proxy = Proxy::start(&database.target()).await;
    proxy.set("doctor", Fault::Deaf);
    let mut command = outboxd(None, &["doctor", "--json", "--config", config.path()]);
    command.env("DATABASE_URL", proxy.url("outboxd", database.name()));
    let found = doctor(command).await;
    finds(&found, &["a notification did not come back within 5 s", "connection pooler"]);
    finds(&found, &["no daemon leads", "systemctl start outboxd"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_and_a_child_that_hangs() {
    let (database, gate) = (Database::new().await, Gate::closed());
    let session = database.session().await;
    let handler = format!("[handler.slow]\ntopics = [\"a\"]\nconcurrency = 1\ntimeout = \"1h\"\n{}\n", gate.command());
    let (_daemon, config) = started(&database, &handler).await;
    let old = "INSERT INTO outbox.event (topic, payload, created_at) SELECT 'a', '{}', now() - interval '1 hour' FROM generate_series(1, 30)";
    session.client.batch_execute(old).await.unwrap();
    gate.begun(1).await;
    until("it has a row", async || text(&session, "SELECT count(*) FROM outbox.open").await == "1").await;
    let find = outboxd(Some(&database), &["doctor", "--json", "--lasting", "1ms", "--config", config.path()]);
    let found = doctor(find).await;
    finds(&found, &["slow is behind: 29 wait, the oldest for 1h", "nothing of it ends"]);
    let hangs =
        |f: &&String| f.starts_with("notice: slow: attempt 1 of event ") && f.contains("has never said anything");
    let hangs = found.1.iter().find(hangs).unwrap_or_else(|| panic!("{:#?}", found.1));
    assert!(hangs.contains("(command)") && hangs.contains("outboxd cancel ") && hangs.contains("`timeout` bounds it"));
    // Nobody is there to end it any more.
    session.client.batch_execute("UPDATE outbox.open SET started_at = now() - interval '2 hours'").await.unwrap();
    let found = doctor(command(&database, &config)).await;
    finds(&found, &["slow: attempt 1 of event", "longer than it may", "outboxd cancel"]);
    drop(gate);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_and_a_handler_that_the_daemon_does_not_know() {
    let database = Database::new().await;
    let session = database.session().await;
    let role = format!("weak_{}", database.name());
    let weak = format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA outbox TO {role}; \
         GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO {role}; GRANT SELECT ON ALL SEQUENCES IN SCHEMA outbox TO {role}; \
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox TO {role}"
    );
    session.client.batch_execute(&weak).await.unwrap();
    let config = ConfigFile::new(TRUE);
    let mut command = outboxd(None, &["doctor", "--json", "--config", config.path()]);
    command.env("DATABASE_URL", url(&database).replace("outboxd@", &format!("{role}@")));
    let found = doctor(command).await;
    finds(&found, &["this role may not INSERT on outbox.done, ", "run the daemon as the role that migrated"]);
    finds(&found, &["mail is not registered", "systemctl reload outboxd"]);
    session.client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_not_there_and_one_of_another_version() {
    let empty = Database::empty().await;
    let config = ConfigFile::new(TRUE);
    finds(&doctor(command(&empty, &config)).await, &["outboxd migrate"]);
    let database = Database::new().await;
    let session = database.session().await;
    let older = "DELETE FROM outbox.refinery_schema_history WHERE version = (SELECT max(version) FROM outbox.refinery_schema_history)";
    session.client.batch_execute(older).await.unwrap();
    finds(&doctor(command(&database, &config)).await, &["outboxd migrate"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off() {
    let database = Database::new().await;
    let (_daemon, config) = started(&database, TRUE).await;
    let folder = ThrowawayPostgres::start(outboxd::postgres::throwaway::Options::default()).await.unwrap();
    let shim = Shim::new(&folder.make_subfolder("shim").unwrap());
    let shifted = async |seconds: i64| {
        shim.set_clock(seconds);
        let mut command = command(&database, &config);
        doctor({
            command.envs(shim.environment());
            command
        })
        .await
    };
    finds(&shifted(3600).await, &["PostgreSQL's clock is", "behind the one here", "the same time server"]);
    finds(&shifted(-3600).await, &["PostgreSQL's clock is", "ahead of the one here"]);
    let (_, findings) = shifted(0).await;
    assert!(findings.contains(&"ok: the clocks agree -> ".to_owned()), "{findings:#?}");
}
