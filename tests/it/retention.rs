//! What has finished goes when it is old, and nothing is lost or repeated by it: with a daemon, from start to end.

use std::time::Duration;

use outboxd::config::{Config, DaemonConfig, DeliveryConfig, OnDeadKey, Start};
use outboxd::postgres::Session;
use outboxd::{Attempt, DaemonBuilder, Failure, Observation, Outcome, RetryPolicy};

use crate::harness::workload::Gate;
use crate::harness::{
    Calls, Database, Running, daemon, deliveries, done, outboxd_output, publish, publish_many, text, texts, until,
};

const DAY: Duration = Duration::from_hours(24);

/// Partitions of `size` ids instead of those that the schema is made with.
pub(crate) async fn small_partitions(session: &Session, count: u32, size: u32) {
    let again = "DO $$ DECLARE first bigint; BEGIN
        FOR first IN SELECT first_id FROM outbox.partitions() LOOP
            EXECUTE format('DROP TABLE outbox.event_p%1$s, outbox.done_p%1$s', first);
        END LOOP; END $$";
    session.client.batch_execute(again).await.unwrap();
    text(session, &format!("SELECT outbox.add_partitions({count} - 1, '1 day', {size})")).await;
}

/// Lets so many days pass for what is in the log and in outbox.done.
pub(crate) async fn days_pass(session: &Session, days: u32) {
    let pass = format!(
        "UPDATE outbox.event SET created_at = created_at - interval '{days} days';
         UPDATE outbox.done SET finished_at = finished_at - interval '{days} days'"
    );
    session.client.batch_execute(&pass).await.unwrap();
}

/// The events in the log.
pub(crate) async fn log(session: &Session) -> Vec<i64> {
    texts(session, "SELECT id FROM outbox.event ORDER BY 1").await.iter().map(|id| id.parse().unwrap()).collect()
}

/// The first ids of the partitions.
pub(crate) async fn partitions(session: &Session) -> Vec<i64> {
    let first = texts(session, "SELECT first_id FROM outbox.partitions() ORDER BY 1").await;
    first.iter().map(|id| id.parse().unwrap()).collect()
}

fn keeping(builder: DaemonBuilder, retention: Option<Duration>) -> DaemonBuilder {
    builder.config(Config { daemon: DaemonConfig { retention, ..DaemonConfig::default() }, ..Config::default() })
}

/// A handler whose first attempt ends as the topic says; any later one succeeds.
fn handler(builder: DaemonBuilder, name: &str, calls: &Calls) -> DaemonBuilder {
    let hour = Duration::from_hours(1);
    let retry = RetryPolicy { base: hour, max: hour, ..RetryPolicy::default() };
    let topics = vec!["#".parse().unwrap()];
    let delivery =
        DeliveryConfig { retry, ordered: Some(OnDeadKey::Block), concurrency: 100, ..DeliveryConfig::new(topics) };
    let calls = calls.clone();
    builder.handler_with(name, delivery, move |attempt: Attempt| {
        calls.take(&attempt);
        let outcome = match attempt.event.topic.as_str() {
            "dead" if attempt.number == 1 => Outcome::Dead { failure: Failure::new("never") },
            "retrying" if attempt.number == 1 => Outcome::Retry { after: None, failure: Failure::new("not yet") },
            "waiting" if attempt.number == 1 => Outcome::Wait { timeout: Some(DAY) },
            "scheduled" if attempt.number == 1 => Outcome::Snooze { after: Some(DAY) },
            _ => Outcome::done(),
        };
        async { outcome }
    })
}

async fn states(session: &Session) -> Vec<String> {
    texts(session, "SELECT state || ' ' || count(*) FROM outbox.delivery GROUP BY state ORDER BY 1").await
}

fn retired(observation: &Observation) -> bool {
    matches!(observation, Observation::Retired { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_finished_goes_and_what_has_not_stays_and_still_runs() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    small_partitions(&session, 30, 10).await;
    let builder = || handler(daemon(&database), "all", &calls);
    let running = Running::start(builder()).await;
    let plain = publish_many(&session, "plain", 25).await;
    for topic in ["dead", "retrying", "waiting", "scheduled"] {
        publish_many(&session, topic, 5).await;
    }
    // The first of a key is dead, and what is behind it is blocked.
    let keyed = "INSERT INTO outbox.event (topic, key, payload) SELECT topic, 'k', '{\"n\": 7}' FROM unnest('{dead,plain,plain}'::text[]) topic";
    session.client.batch_execute(keyed).await.unwrap();
    let delayed = text(&session, "SELECT outbox.publish('plain', '{}', delay => '1 day')").await.parse().unwrap();
    let last = publish_many(&session, "plain", 20).await;
    let before = ["blocked 2", "dead 6", "done 45", "retrying 5", "scheduled 6", "waiting 5"];
    until("each has its state", async || states(&session).await == before).await;
    running.stop().await;

    // A day over the retention: the partitions whose ids are used up go, the one in use waits for a while.
    days_pass(&session, 8).await;
    let running = Running::start(builder()).await;
    let in_use = last.iter().copied().filter(|id| *id >= 60).collect::<Vec<_>>();
    until("what is in full partitions has gone", async || log(&session).await == in_use).await;
    until("so have the partitions", async || partitions(&session).await.first() == Some(&60)).await;
    assert_eq!(running.count(retired), 6);
    until("only the history of what is open is left", async || {
        text(
            &session,
            "SELECT count(*) = count(DISTINCT (o.event_id)) AND count(*) = 21 FROM outbox.attempt a
                        LEFT JOIN outbox.open o USING (event_id, handler)",
        )
        .await
            == "true"
    })
    .await;
    let kept = ["blocked 2", "dead 6", "done 10", "retrying 5", "scheduled 6", "waiting 5"];
    assert_eq!(states(&session).await, kept);
    let shown = outboxd_output(Some(&database), &["show", "26"]).await;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("dead") && shown.contains("never"), "{shown}");
    assert!(deliveries(&session, plain[0]).await.is_empty());

    // Whatever is open goes on without its event.
    let go_on = "SELECT outbox.complete(event_id, handler) FROM outbox.open WHERE state = 'waiting'";
    assert!(texts(&session, go_on).await.iter().all(|done| done == "true"));
    let go_on = "SELECT outbox.retry(event_id, handler) FROM outbox.open WHERE state IN ('scheduled', 'retrying')";
    assert!(texts(&session, go_on).await.iter().all(|done| done == "true"));
    assert_eq!(text(&session, "SELECT outbox.redrive()").await, "6");
    until("all are done", async || states(&session).await == ["done 34"]).await;
    assert_eq!((calls.of(26), calls.of(delayed), calls.of(plain[0])), (2, 1, 1));
    running.stop().await;

    // And goes in its turn, with what is left in the partition in use.
    days_pass(&session, 9).await;
    let running = Running::start(builder()).await;
    for table in ["event", "done", "open", "attempt"] {
        let count = format!("SELECT count(*) FROM outbox.{table}");
        until(&format!("nothing is left in outbox.{table}"), async || text(&session, &count).await == "0").await;
    }
    let event = publish(&session, "plain").await;
    until("the next event is done", async || deliveries(&session, event).await == ["all|done|1"]).await;
    assert_eq!(calls.count(), 25 + 20 * 2 + 3 + 1 + 1 + 20 + 1 - 5, "an answer that came later is no call");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_retention_everything_stays() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    small_partitions(&session, 10, 10).await;
    let running = Running::start(handler(keeping(daemon(&database), None), "all", &calls)).await;
    let events = publish_many(&session, "plain", 35).await;
    until("they are done", async || done(&session, "all").await == events).await;
    days_pass(&session, 1000).await;
    // A key that is forgotten shows that a round has begun, a second one that the first round has ended.
    for round in 1..=3 {
        let old = format!("INSERT INTO outbox.consumed SELECT 'old', {round}, now() - interval '1 day'");
        session.client.batch_execute(&old).await.unwrap();
        until("a round has begun", async || text(&session, "SELECT count(*) FROM outbox.consumed").await == "0").await;
    }
    assert_eq!((log(&session).await, partitions(&session).await.len()), (events, 10));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_handler_and_a_paused_one_keep_what_they_have_not_finished_and_are_told_of() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    small_partitions(&session, 30, 10).await;
    let both = || handler(handler(daemon(&database), "here", &calls), "gone", &calls);
    let here = || handler(daemon(&database), "here", &calls);
    let running = Running::start(both()).await;
    let first = publish_many(&session, "plain", 29).await;
    until("both are done", async || done(&session, "here").await == first && done(&session, "gone").await == first)
        .await;
    running.stop().await;
    let running = Running::start(here()).await;
    let second = publish_many(&session, "plain", 30).await;
    until("one is done", async || done(&session, "here").await.len() == 59).await;
    text(&session, "SELECT outbox.pause('here')").await;
    running.observed("it is paused", |o| matches!(o, Observation::Paused { .. })).await;
    let third = publish_many(&session, "plain", 20).await;
    running.stop().await;

    days_pass(&session, 30).await;
    let notice = |name: &'static str, remedy: &'static str| move |o: &Observation| matches!(o, Observation::Notice { text } if text.contains(name) && text.contains(remedy));
    let running = Running::start(here()).await;
    running.observed("the absent one is told of", notice("handler gone ", "outboxd forget gone")).await;
    running.observed("the paused one is told of", notice("handler here ", "outboxd resume here")).await;
    let left = [second.clone(), third.clone()].concat();
    until("what both have finished has gone", async || log(&session).await == left).await;

    outboxd_output(Some(&database), &["forget", "gone"]).await;
    until("what nobody waits for any more has gone", async || log(&session).await == third).await;
    text(&session, "SELECT outbox.resume('here')").await;
    until("the rest is done", async || done(&session, "here").await == third).await;
    assert_eq!(calls.count(), 29 * 2 + 30 + 20);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_is_behind_gets_everything_however_old_it_is_by_then() {
    let (database, calls, gate) = (Database::new().await, Calls::default(), Gate::closed());
    let session = database.session().await;
    small_partitions(&session, 30, 10).await;
    let receipts = crate::harness::workload::Receipts::default();
    let slow = DeliveryConfig { concurrency: 1, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let builder = || {
        let builder = handler(daemon(&database), "quick", &calls);
        builder.handler_with("slow", slow.clone(), receipts.handler_behind(&gate))
    };
    let running = Running::start(builder()).await;
    let events = publish_many(&session, "plain", 95).await;
    until("one is done", async || done(&session, "quick").await == events).await;
    days_pass(&session, 30).await;
    running.stop().await;
    // A long downtime: all of it is old when the daemon comes back.
    let running = Running::start(builder()).await;
    gate.open();
    receipts.reached(95).await;
    until("both are done", async || done(&session, "slow").await == events).await;
    running.stop().await;
    days_pass(&session, 30).await;
    let running = Running::start(builder()).await;
    until("then it goes", async || log(&session).await.is_empty()).await;
    assert_eq!((receipts.repeated(), calls.count()), (0, 95));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_what_has_gone_is_not_missed_and_nothing_runs_again() {
    let (database, calls) = (Database::new().await, Calls::default());
    let session = database.session().await;
    small_partitions(&session, 30, 10).await;
    let builder = || handler(daemon(&database), "all", &calls);
    let running = Running::start(builder()).await;
    publish_many(&session, "plain", 12).await;
    publish_many(&session, "dead", 3).await;
    publish_many(&session, "plain", 20).await;
    until("each has its state", async || states(&session).await == ["dead 3", "done 32"]).await;
    running.stop().await;
    days_pass(&session, 8).await;
    let kept = publish_many(&session, "plain", 10).await;
    let running = Running::start(builder()).await;
    until("what is old and full has gone", async || log(&session).await.first() == Some(&30)).await;
    until("the new ones are done", async || done(&session, "all").await.ends_with(&kept)).await;
    running.stop().await;

    let elsewhere = "UPDATE outbox.installation SET system_identifier = 1";
    session.client.batch_execute(elsewhere).await.unwrap();
    // One that begins at the beginning gets what is left of it.
    let beginning = DeliveryConfig { start: Start::Beginning, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let (later, open) = (crate::harness::workload::Receipts::default(), Gate::closed());
    open.open();
    let running = Running::start(builder().handler_with("later", beginning, later.handler_behind(&open))).await;
    running.observed("another cluster", |o| matches!(o, Observation::ClusterChanged { .. })).await;
    let log = log(&session).await;
    later.reached(log.len()).await;
    let new = publish_many(&session, "plain", 5).await;
    until("the new ones are done", async || done(&session, "all").await.ends_with(&new)).await;
    assert_eq!(text(&session, "SELECT outbox.redrive()").await, "3");
    until("the dead ones are done", async || calls.count() == 35 + 10 + 5 + 3).await;
    assert_eq!(running.count(|o| matches!(o, Observation::SweepFound { .. })), 0);
    running.stop().await;
}
