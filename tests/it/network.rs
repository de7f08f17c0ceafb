//! Connections that are lost without a word, and PostgreSQL that only takes its time: the first end a term, the second do not.

use outboxd::config::DeliveryConfig;
use outboxd::postgres::Session;
use outboxd::{Attempt, Config, DaemonBuilder, Observation};

use crate::harness::proxy::{Fault, Proxy, Way};
use crate::harness::workload::Gate;
use crate::harness::{Calls, Database, Running, daemon, done, publish_many, text, texts, until, until_within};

/// Longer than any part of the daemon waits before it doubts, in seconds.
const PATIENCE: usize = 12;

/// A daemon behind the proxy that is told nothing but by the bell.
fn behind(database: &Database, proxy: &Proxy, poll: &str) -> DaemonBuilder {
    let config = Config::parse(&format!("[daemon]\npoll_interval = \"{poll}\""), "outboxd.toml", &|_| None).unwrap();
    daemon(database).config(config).target(proxy.target(&database.target()))
}

/// A handler that notes each call and waits for the gate.
fn handled(builder: DaemonBuilder, calls: &Calls, gate: &Gate) -> DaemonBuilder {
    let delivery = DeliveryConfig { concurrency: 4, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let (calls, gate) = (calls.clone(), gate.clone());
    builder.handler_with("all", delivery, move |attempt: Attempt| {
        let (calls, gate) = (calls.clone(), gate.clone());
        async move {
            calls.take(&attempt);
            gate.passed().await;
        }
    })
}

fn opened() -> Gate {
    let gate = Gate::closed();
    gate.open();
    gate
}

/// A term that ended, and why.
fn ended(why: &str) -> impl Fn(&Observation) -> bool + use<> {
    let why = why.to_owned();
    move |observation| matches!(observation, Observation::TermEnded { reason, .. } if reason.contains(&why))
}

/// Waits until everything is done, for longer than the daemon takes to notice what is wrong.
async fn all_done(session: &Session, events: &[i64]) {
    until_within(60, "everything is done", async || done(session, "all").await == events).await;
}

fn leading(observation: &Observation) -> bool {
    matches!(observation, Observation::Leading)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_is_deposed_and_neither_begins_nor_writes_anything_more() {
    let database = Database::new().await;
    let session = database.session().await;
    let proxy = Proxy::start(&database.target()).await;
    let (cut_calls, calls, gate) = (Calls::default(), Calls::default(), Gate::closed());
    let cut = Running::start(handled(behind(&database, &proxy, "5s"), &cut_calls, &gate)).await;
    let standby = Running::start_only(handled(daemon(&database), &calls, &opened()));
    standby.observed("standing by", |o| matches!(o, Observation::StandingBy { .. })).await;
    let mut events = publish_many(&session, "a", 100).await;
    cut_calls.reached(4).await;
    until("they have rows", async || text(&session, "SELECT count(*) FROM outbox.open").await == "4").await;

    proxy.set("", Fault::Hold(Way::Both));
    // The promise, not a speed.
    until_within(15, "the standby leads", async || standby.count(leading) > 0).await;
    events.extend(publish_many(&session, "a", 100).await);
    all_done(&session, &events).await;
    // What the old leader ran ends, and a queue of 96 is before it.
    gate.open();
    assert_eq!(cut_calls.count(), 4, "it begins nothing more");

    // The network brings what it held, in both directions.
    proxy.lift("");
    cut.observed("its term ends", |o| matches!(o, Observation::TermEnded { .. })).await;
    cut.observed("it stands by", |o| matches!(o, Observation::StandingBy { .. })).await;
    let history = texts(&session, "SELECT DISTINCT attempt || ' ' || outcome FROM outbox.attempt ORDER BY 1").await;
    assert_eq!(history, ["1 lost", "2 done"]);
    assert_eq!(calls.count(), events.len());
    assert_eq!((cut.count(leading), standby.count(leading)), (1, 1));
    standby.stop().await;
    cut.observed("it leads again", leading).await;
    events.extend(publish_many(&session, "a", 10).await);
    all_done(&session, &events).await;
    cut.stop().await;
}

/// Together, because each of them mostly waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_lost_without_a_word_is_noticed_and_a_busy_one_is_waited_for() {
    tokio::join!(
        half_open("leader", "the leader's session does not answer"),
        half_open("tail", "the session that reads the log does not answer"),
        a_deaf_listener_is_noticed_without_the_poll(),
        a_table_that_is_locked_for_long_is_waited_for_and_nothing_runs_twice(),
    );
}

async fn a_deaf_listener_is_noticed_without_the_poll() {
    let database = Database::new().await;
    let session = database.session().await;
    let proxy = Proxy::start(&database.target()).await;
    let calls = Calls::default();
    proxy.set("bell", Fault::Deaf);
    let running = Running::start(handled(behind(&database, &proxy, "off"), &calls, &opened())).await;
    running.observed("it sleeps", |o| matches!(o, Observation::Asleep)).await;
    let mut events = publish_many(&session, "a", 10).await;
    running.observed("it notices", ended("is deaf")).await;
    proxy.lift("bell");
    all_done(&session, &events).await;
    events.extend(publish_many(&session, "a", 10).await);
    all_done(&session, &events).await;
    assert_eq!(calls.count(), 20);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_listener_is_half_open_the_poll_finds_what_is_published() {
    let database = Database::new().await;
    let session = database.session().await;
    let proxy = Proxy::start(&database.target()).await;
    let calls = Calls::default();
    let running = Running::start(handled(behind(&database, &proxy, "300ms"), &calls, &opened())).await;
    running.observed("it sleeps", |o| matches!(o, Observation::Asleep)).await;
    proxy.set("bell", Fault::Swallow(Way::ToClient));
    for _ in 0..3 {
        let asleep = running.count(|o| matches!(o, Observation::Asleep));
        publish_many(&session, "a", 1).await;
        until("it is found", async || {
            text(&session, "SELECT count(*) FROM outbox.event").await == calls.count().to_string()
        })
        .await;
        until("it sleeps", async || running.count(|o| matches!(o, Observation::Asleep)) >= asleep).await;
    }
    running.observed("by the poll", |o| matches!(o, Observation::PollFound { .. })).await;
    assert_eq!(running.count(|o| matches!(o, Observation::TermEnded { .. })), 0);
    running.stop().await;
}

/// One session of a lone daemon is half-open; it finds out and goes on.
async fn half_open(role: &str, why: &str) {
    let database = Database::new().await;
    let session = database.session().await;
    let proxy = Proxy::start(&database.target()).await;
    let calls = Calls::default();
    let running = Running::start(handled(behind(&database, &proxy, "5s"), &calls, &opened())).await;
    running.observed("it sleeps", |o| matches!(o, Observation::Asleep)).await;
    proxy.set(role, Fault::Swallow(Way::Both));
    let events = publish_many(&session, "a", 10).await;
    until_within(60, "it notices", async || running.count(ended(why)) == 1).await;
    proxy.lift(role);
    all_done(&session, &events).await;
    running.stop().await;
}

/// As while an index is made: what was done cannot be written for as long as that takes.
async fn a_table_that_is_locked_for_long_is_waited_for_and_nothing_runs_twice() {
    let database = Database::new().await;
    let (session, locking) = (database.session().await, database.session().await);
    let calls = Calls::default();
    let running = Running::start(handled(daemon(&database), &calls, &opened())).await;
    locking.client.batch_execute("BEGIN; LOCK TABLE outbox.done, outbox.open IN SHARE MODE").await.unwrap();
    let mut events = publish_many(&session, "a", 10).await;
    // A second between two of them, or more.
    let tries = || running.count(|o| matches!(o, Observation::Hiccup { doing, .. } if doing.starts_with("writing")));
    until_within(60, "the leader has tried for long", async || tries() >= PATIENCE).await;
    locking.client.batch_execute("ROLLBACK").await.unwrap();
    events.extend(publish_many(&session, "a", 10).await);
    all_done(&session, &events).await;
    assert_eq!(calls.count(), 20);
    assert_eq!(running.count(|o| matches!(o, Observation::TermEnded { .. })), 0);
    running.stop().await;
}
