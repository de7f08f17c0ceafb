//! Who may do what: each of the four roles does its work with its rights. `hostile.rs` has what one tries that only publishes.

use outboxd::config::DeliveryConfig;
use outboxd::daemon::Daemon;
use outboxd::{Event, Failure, Observation, Outcome, RetryPolicy};

use crate::harness::{
    ConfigFile, Database, Login, Process, Running, all_refused, daemon, deliveries, outboxd, publish, publish_many,
    text, texts, until,
};

/// A handler that fails for good at once.
fn fails_once() -> DeliveryConfig {
    DeliveryConfig {
        retry: RetryPolicy { max_attempts: 1, ..RetryPolicy::default() },
        ..DeliveryConfig::new(vec!["a".parse().unwrap()])
    }
}

async fn fails(_: outboxd::Attempt) -> Outcome {
    Outcome::Retry { after: None, failure: Failure::new("no") }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_everything_but_the_key_of_callbacks_and_changes_nothing() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("h", fails_once(), fails)).await;
    let id = publish(&session, "a").await;
    until("it is dead", async || deliveries(&session, id).await == ["h|dead|1"]).await;
    let login = Login::new(&database, "dashboard", &["outbox_reader"]).await;
    let reader = login.session().await;
    for relation in [
        "event",
        "done",
        "open",
        "attempt",
        "handler",
        "delivery",
        "backlog",
        "flow",
        "stuck",
        "slow",
        "failed",
        "operation",
    ] {
        reader.client.batch_execute(&format!("SELECT * FROM outbox.{relation}")).await.unwrap();
    }
    assert_eq!(text(&reader, &format!("SELECT outbox.wait_for({id}, '1 second')")).await, "true");
    let event = id.to_string();
    let (_, told) = login.runs(&["doctor"]).await;
    assert!(told.contains("h has a dead delivery") || told.contains("dead"), "{told}");
    assert!(!told.contains("lacks a right") && !told.contains("permission denied"), "{told}");
    for verb in [&["status"][..], &["status", "--json"], &["events"], &["show", &event], &["redrive", "--help"]] {
        let (code, told) = login.runs(verb).await;
        assert_eq!(code, 0, "{verb:?}: {told}");
    }
    all_refused(
        &reader,
        &[
            "SELECT key FROM outbox.callback_key",
            "INSERT INTO outbox.event (topic, payload) VALUES ('a', '{}')",
            "UPDATE outbox.open SET state = 'retrying'",
            "DELETE FROM outbox.operation",
            &format!("SELECT outbox.retry({id}, 'h')"),
            "SELECT outbox.redrive()",
            "SELECT setval('outbox.bell', 2)",
            "SELECT outbox.allow_publish('x', '#')",
        ],
    )
    .await;
    let (code, told) = login.runs(&["retry", &event]).await;
    assert_eq!(code, 78, "{told}");
    assert!(told.contains("permission denied for function retry"), "{told}");
    running.stop().await;
    drop(reader);
    login.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_does_is_noted_with_role_and_time() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler_with("h", fails_once(), fails)).await;
    let ids = publish_many(&session, "a", 3).await;
    let dead = async || text(&session, "SELECT count(*) FROM outbox.open WHERE state = 'dead'").await;
    until("they are dead", async || dead().await == "3").await;
    let login = Login::new(&database, "alice", &["outbox_operator"]).await;
    let operator = login.session().await;
    let id = ids[0].to_string();
    // Nothing that did nothing is noted.
    let verbs: [&[&str]; 10] = [
        &["resume", "h"],
        &["pause", "h", "--reason", "a look"],
        &["retry", &id],
        &["cancel", &id, "--reason", "never mind"],
        &["limit", "h", "--concurrency", "3"],
        &["redrive", "--handler", "h", "--rate", "5"],
        &["resume", "h"],
        &["discard", &id, "h", "--reason", "too late"],
        &["replay", "h", "--from-id", &id, "--to-id", &id],
        &["status"],
    ];
    for verb in verbs {
        let (code, told) = login.runs(verb).await;
        let nothing = ["resume", "discard"].contains(&verb[0]) && code == 1;
        assert!(code == 0 || nothing, "{verb:?}: {told}");
    }
    let noted = "SELECT concat_ws('|', action, handler, event_id, deliveries, detail) FROM outbox.operation ORDER BY n";
    assert_eq!(
        texts(&session, noted).await,
        [
            "pause|h|{\"reason\": \"a look\"}".to_owned(),
            format!("retry|h|{id}|{{}}"),
            format!("cancel|h|{id}|{{\"reason\": \"never mind\"}}"),
            "limit|h|{\"concurrency\": \"3\"}".to_owned(),
            "redrive|h|2|{\"per_second\": \"5\"}".to_owned(),
            "resume|h|{}".to_owned(),
            format!("replay|h|{id}|1|{{\"to_id\": \"{id}\", \"from_id\": \"{id}\"}}"),
        ]
    );
    let by = "SELECT DISTINCT role FROM outbox.operation WHERE at BETWEEN now() - interval '1 hour' AND now()";
    assert_eq!(texts(&session, by).await, std::slice::from_ref(&login.name));
    assert_eq!(text(&session, "SELECT paused_by FROM outbox.handler").await, "null");
    let (_, told) = login.runs(&["show", &id]).await;
    assert!(told.contains(&format!("cancel h by {}: reason \"never mind\"", login.name)), "{told}");
    // SET ROLE is who somebody is.
    let deputy = format!("deputy_{}", database.name());
    let grant = format!("CREATE ROLE {deputy}; GRANT outbox_operator TO {deputy}; GRANT {deputy} TO {}", login.name);
    session.client.batch_execute(&grant).await.unwrap();
    operator.client.batch_execute(&format!("SET ROLE {deputy}; SELECT outbox.pause('h')")).await.unwrap();
    let last = "SELECT role || ' ' || action FROM outbox.operation ORDER BY n DESC LIMIT 1";
    assert_eq!(text(&session, last).await, format!("{deputy} pause"));
    all_refused(
        &operator,
        &[
            "DELETE FROM outbox.operation",
            "UPDATE outbox.operation SET role = 'bob'",
            "INSERT INTO outbox.operation (role, action) VALUES ('bob', 'pause')",
            "UPDATE outbox.open SET state = 'retrying'",
            "INSERT INTO outbox.event (topic, payload) VALUES ('a', '{}')",
            "SELECT key FROM outbox.callback_key",
            "SELECT outbox.allow_publish('x', '#')",
        ],
    )
    .await;
    running.stop().await;
    drop(operator);
    session.client.batch_execute(&format!("DROP OWNED BY {deputy}; DROP ROLE {deputy}")).await.unwrap();
    login.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_needs_to_own_nothing() {
    let database = Database::new().await;
    let session = database.session().await;
    let login = Login::new(&database, "daemon", &["outbox_daemon"]).await;
    let config = ConfigFile::new(
        "[handler.ordered]\ntopics = [\"k\"]\nordered = true\ncommand = [\"/bin/true\"]\n\
         [handler.dies]\ntopics = [\"a\"]\non_dead = \"died\"\nretry = { max_attempts = 1 }\ncommand = [\"/bin/false\"]\n\
         [handler.hears]\ntopics = [\"died\"]\ncommand = [\"/bin/true\"]\n\
         [handler.asks]\ntopics = [\"a\"]\ncallback = true\ncommand = [\"/bin/echo\", '{\"outcome\": \"wait\"}']\n\
         [schedule.never]\ncron = \"0 0 1 1 *\"\ntopic = \"tick\"\n\
         [flow.order]\non = \"o\"\nstep.one = { command = [\"/bin/true\"], compensate = { command = [\"/bin/true\"] } }\nstep.two = { after = [\"one\"], compensate = { command = [\"/bin/true\"] }, command = [\"/bin/false\"], retry = { max_attempts = 1 } }\n",
    );
    let mut command = outboxd(None, &["run", "--config", config.path()]);
    command.env("DATABASE_URL", login.url());
    let process = Process::start(command);
    process.logged("leading").await;
    let ids = [publish(&session, "a").await, publish(&session, "k").await, publish(&session, "o").await];
    session
        .client
        .batch_execute(
            "INSERT INTO outbox.event (topic, payload, key) SELECT 'k', '{}', 'same' FROM generate_series(1, 20)",
        )
        .await
        .unwrap();
    let dead = "SELECT count(*) FROM outbox.done WHERE handler = 'hears'";
    until("a death is told", async || text(&session, dead).await == "1").await;
    until("it waits", async || {
        text(&session, "SELECT count(*) FROM outbox.open WHERE state = 'waiting' AND handler = 'asks'").await == "1"
    })
    .await;
    session.client.batch_execute(&format!("SELECT outbox.complete({}, 'asks')", ids[0])).await.unwrap();
    until("what is ordered is done", async || {
        text(&session, "SELECT count(*) FROM outbox.done WHERE handler = 'ordered'").await == "21"
    })
    .await;
    until("the flow is undone", async || {
        text(
            &session,
            &format!("SELECT coalesce(string_agg(state, ''), '') FROM outbox.flow WHERE event_id = {}", ids[2]),
        )
        .await
            == "compensated"
    })
    .await;
    until("there are partitions", async || {
        text(&session, "SELECT count(*) >= 4 FROM outbox.partitions()").await == "true"
    })
    .await;
    // They belong to the owner of the schema.
    let owners = "SELECT count(DISTINCT relowner) FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'p')";
    assert_eq!(text(&session, owners).await, "1");
    drop(process);
    let daemon = login.session().await;
    all_refused(
        &daemon,
        &[
            "DROP TABLE outbox.event",
            "TRUNCATE outbox.done",
            "ALTER TABLE outbox.event DISABLE TRIGGER ring",
            "SELECT outbox.allow_publish('x', '#')",
        ],
    )
    .await;
    // Retention goes through functions of the owner.
    for works in [
        "SELECT outbox.old_partitions(interval '1 s')",
        "SELECT outbox.trim_log(0, 1000000, interval '0')",
        "SELECT outbox.drop_partitions()",
    ] {
        daemon.client.batch_execute(works).await.unwrap();
    }
    drop(daemon);
    login.drop().await;
}

/// The lock of the leader, taken by somebody who may not do a leader's work.
const LOCK: &str = "SELECT pg_advisory_lock(31372865143011428)";

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_takes_the_leaders_lock_is_named_and_ended_if_that_is_allowed() {
    let database = Database::new().await;
    let session = database.session().await;
    let login = Login::new(&database, "daemon", &["outbox_daemon"]).await;
    let mallory = Login::new(&database, "mallory", &["outbox_producer"]).await;
    let stranger = mallory.session().await;
    stranger.client.batch_execute(LOCK).await.unwrap();
    let names =
        |observation: &Observation| matches!(observation, Observation::Notice { text } if text.contains(&mallory.name));
    let id = publish(&session, "a").await;
    let builder = Daemon::builder().target(login.target()).handler("h", ["a"], async |_: Event| ());
    let running = Running::start_only(builder);
    running.observed("the stranger is named", names).await;
    let (code, text) = login.runs(&["doctor"]).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&format!("whose role {} is no daemon's", mallory.name)), "{text}");
    assert_eq!(deliveries(&session, id).await, Vec::<String>::new());
    // The remedy.
    session.client.batch_execute(&format!("GRANT pg_signal_backend TO {}", login.name)).await.unwrap();
    until("the daemon leads", async || deliveries(&session, id).await == ["h|done|1"]).await;
    until("the stranger is gone", async || stranger.client.is_closed()).await;
    assert_eq!(running.count(names), 1, "told once");
    running.stop().await;
    for login in [login, mallory] {
        login.drop().await;
    }
}
