//! Somebody is told when something is wrong for long enough, and when it is right again: once, whoever leads.

use std::time::Duration;

use outboxd::config::DeliveryConfig;
use outboxd::{Config, DaemonBuilder, Event, Failure, Observation, Outcome, RetryPolicy};

use crate::harness::{Database, Running, daemon, outboxd_output, publish_many, text, texts, until, until_within};

const ALERTS: &str = "[alert.dead]\nwhen = \"dead\"\nhandler = \"fails\"\nabove = 1\nfor = \"0s\"\n\
                      [alert.late]\nwhen = \"oldest\"\nabove = \"1h\"\nfor = \"0s\"\n\
                      [alert.deaf]\nwhen = \"listener_deaf\"\nfor = \"1h\"\n";

fn config(alerts: &str) -> Config {
    Config::parse(alerts, "outboxd.toml", &|_| None).unwrap()
}

fn builder(database: &Database, alerts: &str) -> DaemonBuilder {
    let retry = RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
    let once = DeliveryConfig { retry, ..DeliveryConfig::new(vec!["a".parse().unwrap()]) };
    daemon(database).config(config(alerts)).handler("pager", ["outboxd.alert.*"], async |_: Event| ()).handler_with(
        "fails",
        once,
        async |_| Outcome::Dead { failure: Failure::new("no") },
    )
}

const TOLD: &str = "SELECT concat_ws(' ', topic, payload->>'alert', payload->>'handler', payload->>'when', \
                    payload->>'above', (payload->>'since')::timestamptz <= now()) FROM outbox.event WHERE topic LIKE 'outboxd.alert.%' ORDER BY id";

const VALUE: &str = "SELECT payload->>'value' FROM outbox.event WHERE topic LIKE 'outboxd.alert.%'";

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_is_raised_and_cleared_by_events_once_whoever_leads() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = Running::start(builder(&database, ALERTS)).await;
    publish_many(&session, "a", 3).await;
    let raised = "outboxd.alert.raised dead fails dead 1 t";
    until_within(60, "it is raised", async || texts(&session, TOLD).await == [raised]).await;
    assert!(matches!(text(&session, VALUE).await.as_str(), "2" | "3"));
    let handled = "SELECT count(*) FROM outbox.done WHERE handler = 'pager'";
    until("somebody is told", async || text(&session, handled).await == "1").await;
    running.observed("and the log", |o| matches!(o, Observation::Alert { raised: true, .. })).await;
    running.stop().await;
    // Another daemon knows that it was told.
    let running = Running::start(builder(&database, ALERTS)).await;
    session.client.batch_execute("SELECT outbox.discard('a test', handler => 'fails')").await.unwrap();
    let cleared = "outboxd.alert.cleared dead fails dead 1 t";
    until_within(60, "it is cleared", async || texts(&session, TOLD).await == [raised, cleared]).await;
    publish_many(&session, "a", 2).await;
    let again = "outboxd.alert.raised dead fails dead 1 t";
    until_within(60, "it is raised again", async || texts(&session, TOLD).await == [raised, cleared, again]).await;
    // What nobody watches any more is not raised any more.
    running.stop().await;
    let running = Running::start(builder(&database, "")).await;
    let gone = "outboxd.alert.cleared dead fails t";
    until_within(60, "it is cleared", async || texts(&session, TOLD).await == [raised, cleared, again, gone]).await;
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.alert").await, "0");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_too_long_is_told_of_each_handler_that_it_is_so_of() {
    let database = Database::new().await;
    let session = database.session().await;
    let held = DeliveryConfig {
        timeout: Duration::from_hours(1),
        concurrency: 1,
        ..DeliveryConfig::new(vec!["b".parse().unwrap()])
    };
    let never = builder(&database, ALERTS).handler_with("held", held, async |_| std::future::pending::<()>().await);
    let running = Running::start(never).await;
    let old = "INSERT INTO outbox.event (topic, payload, created_at) SELECT 'b', '{}', now() - interval '2 hours' FROM generate_series(1, 3)";
    session.client.batch_execute(old).await.unwrap();
    until_within(60, "it is raised", async || {
        let told = texts(&session, TOLD).await;
        told == ["outboxd.alert.raised late held oldest 3600 t"]
    })
    .await;
    let seconds: f64 = text(&session, VALUE).await.parse().unwrap();
    assert!((7200.0..7400.0).contains(&seconds), "{seconds}");
    running.kill().await;
}

#[tokio::test]
async fn an_alert_that_is_none_is_refused() {
    let text = "[alert.a]\nwhen = \"sad\"\n[alert.b]\nabove = 3\n[alert.c]\nwhen = \"oldest\"\nabove = 3\n\
                [alert.d]\nwhen = \"backlog\"\n[alert.e]\nwhen = \"breaker_open\"\nabove = 1\n\
                [alert.f]\nwhen = \"listener_deaf\"\nhandler = \"x\"\n[alert.\"g h\"]\nwhen = \"dead\"\nabove = 10000\nfor = \"2d\"\n";
    let errors = Config::parse(text, "f", &|_| None).unwrap_err().to_string();
    for said in [
        "f:2: alert.a.when: \"sad\" is not what can be watched; write \"dead\", \"backlog\"",
        "f:3: alert.b: `when` is missing",
        "f:7: alert.c.above: 3 is an integer; write a duration from \"1s\" to \"30d\"",
        "f:8: alert.d: `above` is missing",
        "f:12: alert.e.above: \"breaker_open\" is so or not; remove `above`",
        "f:15: alert.f.handler: the listener is that of all handlers; remove it",
        "\"g h\" is not the name of an alert",
        "f:18: alert.\"g h\".above: 10000 is out of range",
        "for: \"2d\" is out of range",
    ] {
        assert!(errors.contains(said), "{said}\n{errors}");
    }
    let unknown = "[handler.mail]\ntopics = [\"a\"]\ncommand = [\"/bin/true\"]\n[alert.dead]\nwhen = \"dead\"\nhandler = \"male\"\n";
    let file = crate::harness::ConfigFile::new(unknown);
    let output = outboxd_output(None, &["check", "--offline", "--config", file.path()]).await;
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("alert dead: there is no handler male"), "{told}");
}
