//! Flows that change under way: cancelled, left by a daemon that dies or stops, with another definition.

use outboxd::daemon::Flow;
use outboxd::postgres::Session;
use outboxd::{Failure, Observation, Outcome};

use crate::flow::{Script, chain, fast, is, nothing_is_open, order, wait};
use crate::harness::{Database, Running, daemon, deliveries, publish, publish_many, text, texts, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_flow_begins_nothing_more_and_what_is_done_is_undone() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).flow(order(&script))).await;
    let cancel =
        async |event: i64| text(&session, &format!("SELECT outbox.cancel({event}, 'order', 'changed her mind')")).await;
    // A step waits for its answer.
    script.answers("payment", [wait()]);
    let event = publish(&session, "placed").await;
    until("it waits", async || deliveries(&session, event).await.contains(&"order/payment|waiting|1".to_owned())).await;
    until("the parcel is booked", async || {
        deliveries(&session, event).await.contains(&"order/parcel|done|1".to_owned())
    })
    .await;
    assert_eq!(cancel(event).await, "true");
    is(&session, event, "order", "cancelled").await;
    let undone: Vec<String> = script.calls().into_iter().filter(|call| call.contains('/')).collect();
    assert_eq!(undone, ["payment/compensate 1", "parcel/compensate 1", "stock/compensate 1"]);
    let flow = format!("SELECT concat_ws(' | ', state, last_error) FROM outbox.flow WHERE event_id = {event}");
    assert_eq!(texts(&session, &flow).await, ["cancelled | changed her mind"]);
    assert_eq!(cancel(event).await, "false", "it has ended");

    // A step runs, and nothing has a row: it may end, and is undone.
    let parcel = script.hold("parcel");
    let event = publish(&session, "placed").await;
    let parcels = || script.count("parcel 1");
    until("the parcel is being booked", async || parcels() == 2).await;
    assert_eq!(cancel(event).await, "true");
    assert_eq!(cancel(event).await, "false", "it is cancelled already");
    let heard = move |o: &Observation| matches!(o, Observation::Cancelled { event: of, .. } if of.0 == event);
    running.observed("the daemon has heard of it", heard).await;
    parcel.notify_one();
    is(&session, event, "order", "cancelled").await;
    let undone = "SELECT handler FROM outbox.done WHERE handler LIKE '%/compensate' AND event_id";
    let all = ["order/parcel/compensate", "order/payment/compensate", "order/stock/compensate"];
    until("all is undone", async || texts(&session, &format!("{undone} = {event} ORDER BY 1")).await == all).await;
    assert!(!script.calls().contains(&"told 1".to_owned()));

    // Nothing has begun.
    session.client.batch_execute("SELECT outbox.pause('order')").await.unwrap();
    running.observed("it is paused", |o| matches!(o, Observation::Paused { .. })).await;
    let before = script.calls().len();
    let event = publish(&session, "placed").await;
    assert_eq!(cancel(event).await, "true");
    session.client.batch_execute("SELECT outbox.resume('order')").await.unwrap();
    let next = publish(&session, "placed").await;
    until("the next one is at its parcel", async || parcels() == 3).await;
    parcel.notify_one();
    is(&session, next, "order", "done").await;
    assert_eq!(deliveries(&session, event).await, ["order|cancelled|0"]);
    assert_eq!(script.calls().len(), before + 4);
    nothing_is_open(&session).await;
    until("nothing is to be cancelled", async || text(&session, "SELECT count(*) FROM outbox.cancelling").await == "0")
        .await;
    running.stop().await;
}

/// Whoever comes first: the end of what runs, the row of the instance, or the news of the cancellation.
#[tokio::test(flavor = "multi_thread")]
async fn a_flow_that_is_cancelled_at_any_moment_is_undone_or_done() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).flow(chain(&script))).await;
    let mut events = Vec::new();
    for i in 0..60 {
        // Every other one gets rows on its way.
        if i % 2 == 0 {
            script.answers(
                ["b", "c", "d"][i / 2 % 3],
                [Outcome::Retry { after: None, failure: Failure::new("not now") }],
            );
        }
        let event = publish(&session, "placed").await;
        let steps = i % 6;
        let done = format!("SELECT count(*) FROM outbox.done WHERE event_id = {event} AND handler LIKE 'chain/_'");
        until("some of its steps are done", async || {
            text(&session, &done).await.parse::<usize>().unwrap() >= steps.min(4)
        })
        .await;
        let did = text(&session, &format!("SELECT outbox.cancel({event}, 'chain')")).await;
        events.push((event, did));
    }
    nothing_is_open(&session).await;
    until("nothing is to be cancelled", async || text(&session, "SELECT count(*) FROM outbox.cancelling").await == "0")
        .await;
    nothing_is_open(&session).await;
    for (event, did) in events {
        let state = text(&session, &format!("SELECT state FROM outbox.flow WHERE event_id = {event}")).await;
        let of = format!("FROM outbox.done WHERE event_id = {event} AND outcome = 'done' AND handler LIKE");
        let taken = text(&session, &format!("SELECT count(*) {of} 'chain/_'")).await;
        let undone = text(&session, &format!("SELECT count(*) {of} 'chain/_/compensate'")).await;
        let expected = if did == "true" { ("cancelled", taken.clone()) } else { ("done", "0".to_owned()) };
        assert_eq!((&*state, undone), expected, "event {event}, of which {taken} steps were done");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_in_the_middle_repeats_no_step_that_was_done() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).flow(chain(&script))).await;
    let c = script.hold("c");
    let events = publish_many(&session, "placed", 3).await;
    let count = |name: &str| script.count(name);
    until("they are at their third step", async || count("c ") == 3).await;
    running.kill().await;
    for _ in 0..6 {
        c.notify_one();
    }
    script.hold_no_more("c");
    let running = Running::start(daemon(&database).flow(chain(&script))).await;
    for event in events {
        is(&session, event, "chain", "done").await;
    }
    assert_eq!((count("a "), count("b "), count("c "), count("d "), count("e ")), (3, 3, 6, 3, 3));
    assert_eq!(script.results("e")["b"], "b is done");
    nothing_is_open(&session).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_answered_while_no_daemon_runs_is_followed_by_the_next_one() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).flow(chain(&script))).await;
    script.answers("b", [wait(), wait()]);
    let events = publish_many(&session, "placed", 2).await;
    let waiting = "SELECT count(*) FROM outbox.open WHERE handler = 'chain/b' AND state = 'waiting'";
    let standing = "SELECT count(*) FROM outbox.open WHERE flow_version IS NOT NULL";
    until("both wait", async || {
        (text(&session, waiting).await, text(&session, standing).await) == ("2".into(), "2".into())
    })
    .await;
    running.kill().await;
    let [one, other] = events[..] else { panic!("two events") };
    assert_eq!(text(&session, &format!("SELECT outbox.complete({one}, 'chain/b', '7')")).await, "true");
    let ended = format!("SELECT outbox.fail({other}, 'chain/b', 'no money', dead => true)");
    assert_eq!(text(&session, &ended).await, "true");
    // What follows is there before anybody runs it.
    let next = "SELECT handler FROM outbox.open WHERE state = 'scheduled' ORDER BY 1";
    assert_eq!(texts(&session, next).await, ["chain/a/compensate", "chain/c"]);
    let running = Running::start(daemon(&database).flow(chain(&script))).await;
    is(&session, one, "chain", "done").await;
    is(&session, other, "chain", "compensated").await;
    assert_eq!(script.results("e")["b"], 7);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_answer_never_comes_is_undone_when_its_time_is_over() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).flow(order(&script))).await;
    // Two failures are too many.
    let never = Outcome::Wait { timeout: Some(std::time::Duration::from_millis(100)) };
    script.answers("payment", [never.clone(), never]);
    let event = publish(&session, "placed").await;
    is(&session, event, "order", "compensated").await;
    let undone: Vec<String> = script.calls().into_iter().filter(|call| call.contains('/')).collect();
    assert_eq!(undone, ["payment/compensate 1", "parcel/compensate 1", "stock/compensate 1"]);
    assert_eq!(text(&session, &format!("SELECT outbox.complete({event}, 'order/payment')")).await, "false", "too late");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_leaves_what_it_has_begun_to_the_next_one() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).flow(chain(&script))).await;
    let b = script.hold("b");
    let event = publish(&session, "placed").await;
    until("its second step runs", async || script.calls() == ["a 1", "b 1"]).await;
    let stopped = tokio::spawn(running.stop());
    b.notify_one();
    stopped.await.unwrap();
    script.hold_no_more("b");
    assert_eq!(text(&session, "SELECT flow_version FROM outbox.open WHERE handler = 'chain'").await, "1");
    let running = Running::start(daemon(&database).flow(chain(&script))).await;
    is(&session, event, "chain", "done").await;
    assert_eq!(script.calls(), ["a 1", "b 1", "c 1", "d 1", "e 1"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_ends_by_the_definition_it_began_with() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).flow(chain(&script))).await;
    // One with rows, and one that only the daemon knows, which dies.
    script.answers("b", [wait()]);
    let waits = publish(&session, "placed").await;
    until("it waits", async || deliveries(&session, waits).await.contains(&"chain/b|waiting|1".to_owned())).await;
    let _ = script.hold("b");
    let runs = publish(&session, "placed").await;
    until("the other one runs", async || script.count("b 1") == 2).await;
    running.kill().await;
    script.hold_no_more("b");
    let shorter = Flow::new("chain", ["placed"])
        .step_with("a", &[], fast(), script.handler())
        .step_with("b", &["a"], fast(), script.handler())
        .step_with("z", &["b"], fast(), script.handler())
        // Those that only older instances have.
        .step_with("c", &["z"], fast(), script.handler())
        .step_with("d", &["z"], fast(), script.handler())
        .step_with("e", &["z"], fast(), script.handler());
    let running = Running::start(daemon(&database).flow(shorter)).await;
    assert_eq!(text(&session, &format!("SELECT outbox.complete({waits}, 'chain/b')")).await, "true");
    for event in [waits, runs] {
        is(&session, event, "chain", "done").await;
        let z = format!("SELECT count(*) FROM outbox.done WHERE event_id = {event} AND handler = 'chain/z'");
        assert_eq!(text(&session, &z).await, "0", "event {event} began with the first definition");
    }
    let event = publish(&session, "placed").await;
    is(&session, event, "chain", "done").await;
    assert!(deliveries(&session, event).await.contains(&"chain/z|done|1".to_owned()));
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.flow_version").await, "2");
    running.stop().await;
}

/// A flow that no daemon runs, for what only the database decides.
pub(crate) const HANDLERS: &str = "
    INSERT INTO outbox.handler (name, topics, topic_regex, kind, settings, first_id)
    VALUES ('f', '{placed}', outbox.topic_regex('{placed}'), 'flow', '{}', 0);
    INSERT INTO outbox.handler (name, flow, topics, topic_regex, kind, settings, first_id)
    SELECT 'f/s' || i || undo, 'f', '{}', outbox.topic_regex('{}'), 'rust', '{\"retry\": {\"max_attempts\": 9}}', 0
    FROM generate_series(0, 5) i, unnest(ARRAY['', '/compensate']) undo;";

/// The first step has a row, and its flow has none yet.
async fn a_step_waits(session: &Session, event: i64) {
    let row = "INSERT INTO outbox.open (event_id, handler, state, attempt, due_at, flow, topic, payload, headers, priority, created_at)
               SELECT id, 'f/s0', 'waiting', 1, now() + interval '1 hour', 'f', topic, payload, headers, priority, created_at
               FROM outbox.event WHERE id = $1";
    session.client.execute(row, &[&event]).await.unwrap();
}

/// The daemon gives an instance its row while a callback ends its step: neither sees what the other one does before it commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_ends_while_its_flow_gets_its_row_is_followed_by_the_next_one() {
    let database = Database::new().await;
    let (session, other) = (database.session().await, database.session().await);
    session.client.batch_execute(HANDLERS).await.unwrap();
    let steps =
        r#"[{"name": "s0", "after": [], "compensate": null}, {"name": "s1", "after": ["s0"], "compensate": null}]"#;
    session.client.batch_execute(&format!("SELECT outbox.define_flow('f', '{steps}', 'hold')")).await.unwrap();
    for callback_is_first in [true, false] {
        let event = publish(&session, "placed").await;
        a_step_waits(&session, event).await;
        let ends = format!("SELECT outbox.complete({event}, 'f/s0')");
        let begins = format!("SELECT outbox.begin_flow({event}, 'f')");
        let (first, second) = if callback_is_first { (&ends, &begins) } else { (&begins, &ends) };
        session.client.batch_execute(&format!("BEGIN; {first}")).await.unwrap();
        let waits = async {
            until("the second one waits for the first", async || {
                let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
                texts(&session, waiting).await == ["1"]
            })
            .await;
            session.client.batch_execute("COMMIT").await.unwrap();
        };
        let (second, ()) = tokio::join!(other.client.batch_execute(second), waits);
        second.unwrap();
        let states = format!("SELECT handler || ' ' || state FROM outbox.open WHERE event_id = {event} ORDER BY 1");
        assert_eq!(
            texts(&session, &states).await,
            ["f waiting", "f/s1 scheduled"],
            "callback first: {callback_is_first}"
        );
    }
}

/// A daemon that dies between the row of a step and that of its flow leaves an instance that another definition must not take.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_which_only_a_step_has_a_row_keeps_its_definition() {
    let database = Database::new().await;
    let session = database.session().await;
    session.client.batch_execute(HANDLERS).await.unwrap();
    let begins = "INSERT INTO outbox.position (handler, position) VALUES ('f', '3:3:')";
    session.client.batch_execute(begins).await.unwrap();
    let define = async |steps: &str| {
        session.client.batch_execute(&format!("SELECT outbox.define_flow('f', '{steps}', 'hold')")).await.unwrap();
    };
    define(r#"[{"name": "s0", "after": [], "compensate": null}, {"name": "s1", "after": ["s0"], "compensate": null}]"#)
        .await;
    let event = publish(&session, "placed").await;
    a_step_waits(&session, event).await;
    define(r#"[{"name": "s0", "after": [], "compensate": null}]"#).await;
    assert_eq!(texts(&session, "SELECT flow_version FROM outbox.open WHERE handler = 'f'").await, ["1"]);
    session.client.batch_execute(&format!("SELECT outbox.complete({event}, 'f/s0')")).await.unwrap();
    assert_eq!(texts(&session, "SELECT handler FROM outbox.open WHERE flow = 'f'").await, ["f/s1"]);
}
