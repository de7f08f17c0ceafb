//! A dump of a running installation, restored into a new cluster: what was undelivered is delivered, what was done is not.

use std::time::Duration;

use outboxd::config::DeliveryConfig;
use outboxd::postgres::throwaway::Options;
use outboxd::postgres::{Session, ThrowawayPostgres};
use outboxd::{Attempt, Daemon, DaemonBuilder, Failure, Observation, Outcome, RetryPolicy};

use crate::harness::workload::Gate;
use crate::harness::{Calls, Database, Programs, Running, daemon, deliveries, done, publish_many, text, texts, until};

/// Succeeds, but for events whose topic says otherwise; `held` waits for the gate, and `failing` for a second attempt.
fn handler(builder: DaemonBuilder, calls: &Calls, gate: &Gate) -> DaemonBuilder {
    let hour = Duration::from_hours(1);
    let retry = RetryPolicy { base: hour, max: hour, ..RetryPolicy::default() };
    let topics = vec!["#".parse().unwrap()];
    let delivery = DeliveryConfig { concurrency: 100, retry, ..DeliveryConfig::new(topics) };
    let (calls, gate) = (calls.clone(), gate.clone());
    builder.handler_with("all", delivery, move |attempt: Attempt| {
        let (calls, gate) = (calls.clone(), gate.clone());
        async move {
            calls.take(&attempt);
            match attempt.event.topic.as_str() {
                "held" => gate.passed().await,
                "failing" if attempt.number == 1 => {
                    return Outcome::Retry { after: None, failure: Failure::new("not yet") };
                }
                "hopeless" if attempt.number == 1 => return Outcome::Dead { failure: Failure::new("never") },
                _ => {}
            }
            Outcome::done()
        }
    })
}

async fn states(session: &Session) -> Vec<String> {
    texts(session, "SELECT state || ' ' || count(*) FROM outbox.delivery GROUP BY state ORDER BY 1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_a_running_installation_goes_on_in_a_new_cluster_with_a_lower_transaction_counter() {
    let (old, new) = (Database::new().await, ThrowawayPostgres::start(Options::default()).await.unwrap());
    let session = old.session().await;
    // Every transaction id of the events lies in the future of the new cluster.
    let spend = "DO $$ BEGIN FOR n IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$";
    session.client.batch_execute(spend).await.unwrap();
    let (calls, gate) = (Calls::default(), Gate::closed());
    let running = Running::start(handler(daemon(&old), &calls, &gate)).await;
    let mut all = Vec::new();
    for topic in ["plain", "failing", "hopeless", "held"] {
        all.extend(publish_many(&session, topic, 10).await);
    }
    let before = ["dead 10", "done 10", "retrying 10", "running 10"];
    until("each has its state", async || states(&session).await == before).await;

    // The daemon runs, and an app has just published.
    let programs = Programs::of(&new).await;
    let folder = new.make_subfolder("dump").unwrap();
    let dump = folder.join("dump.sql");
    let from = crate::harness::cluster().socket_dir().to_str().unwrap();
    let pending = publish_many(&session, "held", 10).await;
    programs.run("pg_dump", &["-h", from, "-U", "outboxd", "-f", dump.to_str().unwrap(), old.name()]);
    all.extend(&pending);
    let to = new.socket_dir().to_str().unwrap();
    let settings = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", to, "-U", "outboxd", "-d", "postgres"];
    programs.run("psql", &[&settings[..], &["-f", dump.to_str().unwrap()]].concat());
    running.kill().await;
    let session = new.target("postgres").connect("test").await.unwrap();
    let future = "SELECT min(xid) > pg_snapshot_xmax(pg_current_snapshot()) FROM outbox.event";
    assert_eq!(text(&session, future).await, "true");
    let last = text(&session, "SELECT max(xid::text::bigint) FROM outbox.event").await;
    let keys_before = calls.keys();

    gate.open();
    let builder = || handler(Daemon::builder().target(new.target("postgres")), &calls, &gate);
    let running = Running::start(builder()).await;
    running.observed("the cluster changed", |o| matches!(o, Observation::ClusterChanged { restamped: 50, .. })).await;
    let moved = ["dead 10", "done 30", "retrying 10"];
    until("what was running and pending is done", async || states(&session).await == moved).await;
    // What waited for its time or for a person still does.
    let open = texts(&session, "SELECT outbox.retry(event_id, handler) FROM outbox.open").await;
    assert_eq!(open.len(), 20);
    let new_events = publish_many(&session, "plain", 10).await;
    all.extend(&new_events);
    until("everything is done", async || done(&session, "all").await == all).await;

    let (plain, held) = (&all[..10], &all[30..40]);
    assert!(plain.iter().chain(&new_events).all(|event| calls.of(*event) == 1), "what was done is not repeated");
    assert!(
        held.iter().all(|event| calls.of(*event) == 2 && calls.keys()[event] == keys_before[event]),
        "the same key"
    );
    for event in held {
        assert_eq!(deliveries(&session, *event).await, ["all|done|2"]);
    }
    assert_eq!(running.count(|o| matches!(o, Observation::SweepFound { .. })), 0);
    running.stop().await;

    // It is at home now, and the old ids come back as the ids of new transactions.
    let spend = format!("DO $$ BEGIN WHILE pg_current_xact_id()::text::bigint < {last} LOOP COMMIT; END LOOP; END $$");
    session.client.batch_execute(&spend).await.unwrap();
    let running = Running::start(builder()).await;
    let late = publish_many(&session, "plain", 10).await;
    all.extend(&late);
    until("the late ones are done", async || done(&session, "all").await == all).await;
    assert!(late.iter().all(|event| calls.of(*event) == 1));
    assert_eq!(running.count(|o| matches!(o, Observation::ClusterChanged { .. })), 0);
    running.stop().await;
    new.stop().await.unwrap();
}
