//! What is in the package for Prometheus and Grafana names metrics that there are, and what only the database knows is shown.

use std::collections::BTreeSet;
use std::time::Duration;

use outboxd::config::DeliveryConfig;
use outboxd::{Event, Failure, Observation, Outcome, RetryPolicy};

use crate::harness::workload::Gate;
use crate::harness::{Database, Running, daemon, get, publish, publish_many, scrape, text, until, until_within};

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/examples/prometheus/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let words = text.split(|c: char| !is_name(c)).filter(|word| word.starts_with("outboxd_"));
    words.map(ToOwned::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_dashboard_name_metrics_and_labels_that_there_are() {
    let database = Database::new().await;
    let running = Running::start(daemon(&database).handler("one", ["a"], async |_: Event| ())).await;
    let page = scrape(running.address().await).await;
    let samples: BTreeSet<&str> = page.series("outboxd_").into_iter().filter_map(|s| s.split('{').next()).collect();
    for file in ["outboxd.rules.yml", "outboxd.rules.test.yml", "grafana.json"] {
        let names = named(&read(file));
        assert!(names.len() >= 4, "{file} names few metrics: {names:?}");
        for name in names {
            assert!(samples.contains(name.as_str()), "{file} names {name}, which is not scraped");
        }
    }
    // Every word that a rule compares a label with is one that a label can have.
    for word in ["retry", "unreachable", "dead", "done"] {
        assert_eq!(page.series(&format!("outcome=\"{word}\"")).len(), 1, "{word}");
    }
    assert_eq!(page.series("state=\"dead\"").len(), 1);
    let dashboard: serde_json::Value = serde_json::from_str(&read("grafana.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    // For `promtool check metrics`, which .ci/run asks.
    let folder = env!("CARGO_TARGET_TMPDIR");
    std::fs::write(format!("{folder}/metrics.txt"), get(running.address().await, "/metrics").await.1).unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_how_long_and_what_is_dead_is_shown_by_the_one_that_leads() {
    let (database, gate) = (Database::new().await, Gate::closed());
    let session = database.session().await;
    let one = |topic: &str| DeliveryConfig {
        concurrency: 1,
        timeout: Duration::from_hours(1),
        retry: RetryPolicy { max_attempts: 1, ..RetryPolicy::default() },
        ..DeliveryConfig::new(vec![topic.parse().unwrap()])
    };
    let builder = || {
        let gate = gate.clone();
        daemon(&database)
            .handler_with("held", one("a"), move |_| {
                let gate = gate.clone();
                async move { gate.passed().await }
            })
            .handler_with("dies", one("b"), async |_| Outcome::Dead { failure: Failure::new("no") })
            .handler_with("later", one("c"), async |_| ())
    };
    let running = Running::start(builder()).await;
    let address = running.address().await;
    publish_many(&session, "a", 20).await;
    publish_many(&session, "b", 3).await;
    session
        .client
        .batch_execute("SELECT outbox.publish('c', '{}', delay => '1 hour') FROM generate_series(1, 2)")
        .await
        .unwrap();
    let shows = async |series: &str, value: u64| {
        until_within(60, series, async || scrape(address).await.value(series) == value).await;
    };
    // One runs, and has a row after a second; the others are read.
    shows("outboxd_queued{handler=\"held\"}", 19).await;
    shows("outboxd_open_deliveries{handler=\"held\",state=\"running\"}", 1).await;
    shows("outboxd_open_deliveries{handler=\"dies\",state=\"dead\"}", 3).await;
    shows("outboxd_open_deliveries{handler=\"later\",state=\"scheduled\"}", 2).await;
    shows("outboxd_unread_events{handler=\"held\"}", 0).await;
    let page = scrape(address).await;
    assert_eq!(page.value("outboxd_database_read"), 1);
    assert!(page.float("outboxd_oldest_seconds{handler=\"held\"}") > 0.5, "it has waited for more than a second");
    assert!(page.float("outboxd_oldest_seconds{handler=\"later\"}") < f64::EPSILON, "it is not due");
    // What is due and cannot begin has waited since it was due, not since it was created.
    session.client.batch_execute("SELECT outbox.pause('later')").await.unwrap();
    running.observed("it is paused", |o| matches!(o, Observation::Paused { .. })).await;
    let due = "UPDATE outbox.open SET due_at = now() - interval '1 hour' WHERE handler = 'later'";
    session.client.batch_execute(due).await.unwrap();
    until_within(60, "it is overdue", async || {
        scrape(address).await.float("outboxd_oldest_seconds{handler=\"later\"}") > 3500.0
    })
    .await;
    // A standby shows nothing of the database: what all daemons show can be added up.
    let standby = Running::start_only(builder());
    standby.observed("it stands by", |o| matches!(o, Observation::StandingBy { .. })).await;
    let page = scrape(standby.address().await).await;
    assert_eq!(page.value("outboxd_database_read"), 0);
    assert_eq!(page.value("outboxd_open_deliveries{handler=\"dies\",state=\"dead\"}"), 0);
    standby.stop().await;
    gate.open();
    until("all are done", async || {
        text(&session, "SELECT count(*) FROM outbox.done WHERE handler = 'held'").await == "20"
    })
    .await;
    running.stop().await;
}

/// With more than a lane holds, the rest is counted by ids.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_read_is_counted_and_the_plan_of_the_question_reads_no_table() {
    let (database, gate) = (Database::new().await, Gate::closed());
    let session = database.session().await;
    let held = gate.clone();
    let config = DeliveryConfig {
        concurrency: 1,
        timeout: Duration::from_hours(1),
        ..DeliveryConfig::new(vec!["a".parse().unwrap()])
    };
    let running = Running::start(daemon(&database).handler_with("held", config, move |_| {
        let held = held.clone();
        async move { held.passed().await }
    }))
    .await;
    let address = running.address().await;
    publish(&session, "a").await;
    publish_many(&session, "a", 9_999).await;
    until_within(60, "the rest is unread", async || {
        let page = scrape(address).await;
        let read = page.value("outboxd_queued{handler=\"held\"}") + 1;
        let unread = page.value("outboxd_unread_events{handler=\"held\"}");
        unread > 1000 && read + unread == 10_000
    })
    .await;
    gate.open();
    until_within(60, "all are done", async || {
        text(&session, "SELECT count(*) FROM outbox.done").await == "10000"
            && scrape(address).await.value("outboxd_unread_events{handler=\"held\"}") == 0
    })
    .await;
    running.stop().await;
}
