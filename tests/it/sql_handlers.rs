//! A SQL function and the end of its delivery are one transaction: it happens exactly once, whatever comes between.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::config::{DeliveryConfig, SqlConfig};
use outboxd::event::Attempt;
use outboxd::handler::Handler as _;
use outboxd::handler::sql::SqlHandler;
use outboxd::postgres::{Session, Target};
use outboxd::{Fault, Observation, Outcome};

use crate::handlers::{QUICK, history, start};
use crate::harness::{Database, Running, daemon, deliveries, done, publish, ring, text, texts, until};

/// The function `app.apply`: it keeps the event's id in `app.applied`, then does what is given here.
async fn apply(session: &Session, body: &str) {
    let text = format!(
        "CREATE SCHEMA app; CREATE TABLE app.applied (event bigint); CREATE SEQUENCE app.calls; \
         CREATE FUNCTION app.apply(e outbox.event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO app.applied VALUES (e.id); PERFORM nextval('app.calls'); {body} END $$"
    );
    session.client.batch_execute(&text).await.unwrap();
}

const CONFIG: &str = "[handler.ledger]\ntopics = [\"#\"]\nsql = \"app.apply\"\n";
/// The function waits for this advisory lock, which the test holds.
const WAIT: &str = "PERFORM pg_advisory_xact_lock(42); RETURN NULL;";
const HOLD: &str = "SELECT pg_advisory_lock(42)";
const LET_GO: &str = "SELECT pg_advisory_unlock(42)";

/// The sessions in which the function waits.
async fn waiting(session: &Session) -> Vec<String> {
    let query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
                 AND application_name = 'outboxd pool' AND wait_event_type = 'Lock'";
    texts(session, query).await
}

async fn applied(session: &Session) -> Vec<String> {
    texts(session, "SELECT event FROM app.applied ORDER BY event").await
}

/// A daemon whose only delivery, of event 1, waits inside the function.
async fn stuck(database: &Database, session: &Session) -> Running {
    apply(session, WAIT).await;
    session.client.batch_execute(HOLD).await.unwrap();
    let running = start(database, &format!("{CONFIG}{QUICK}\n")).await;
    publish(session, "a").await;
    until("the function waits", async || waiting(session).await.len() == 1).await;
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_function_returns_is_the_result_and_its_effect_is_there_once() {
    let database = Database::new().await;
    let session = database.session().await;
    apply(&session, "RETURN jsonb_build_object('topic', e.topic, 'payload', e.payload);").await;
    let running = start(&database, CONFIG).await;
    let event = publish(&session, "a").await;
    until("it is done", async || deliveries(&session, event).await == ["ledger|done|1"]).await;
    assert_eq!(applied(&session).await, ["1"]);
    assert_eq!(texts(&session, "SELECT result FROM outbox.done").await, ["{\"topic\": \"a\", \"payload\": {}}"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_raises_leaves_nothing_and_runs_again() {
    let database = Database::new().await;
    let session = database.session().await;
    // A sequence remembers what was rolled back.
    let raise = "IF currval('app.calls') < 3 THEN RAISE EXCEPTION 'not yet' USING HINT = 'wait'; END IF; RETURN NULL;";
    apply(&session, raise).await;
    let running = start(&database, &format!("{CONFIG}{QUICK}\n")).await;
    let event = publish(&session, "a").await;
    until("it is done", async || deliveries(&session, event).await == ["ledger|done|3"]).await;
    assert_eq!(applied(&session).await, ["1"]);
    let failed = "retry not yet (SQLSTATE P0001); wait";
    until("its history is written", async || history(&session, event).await == [failed, failed, "done"]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_answers_snooze_leaves_nothing_and_runs_later() {
    let database = Database::new().await;
    let session = database.session().await;
    let snooze =
        "IF currval('app.calls') = 1 THEN RETURN '{\"outcome\": \"snooze\", \"after\": 3600}'; END IF; RETURN NULL;";
    apply(&session, snooze).await;
    let running = start(&database, CONFIG).await;
    let event = publish(&session, "a").await;
    until("it is scheduled", async || deliveries(&session, event).await == ["ledger|scheduled|1"]).await;
    assert_eq!(applied(&session).await, Vec::<String>::new());
    let row = "SELECT concat_ws('|', failures, due_at BETWEEN now() + '59 min' AND now() + '61 min') FROM outbox.open";
    assert_eq!(text(&session, row).await, "0|t");
    session.client.batch_execute("UPDATE outbox.open SET due_at = now()").await.unwrap();
    ring(&session).await;
    until("it is done", async || deliveries(&session, event).await == ["ledger|done|2"]).await;
    assert_eq!(applied(&session).await, ["1"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_whose_session_is_ended_runs_again_and_its_effect_is_there_once() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = stuck(&database, &session).await;
    let pid = waiting(&session).await.remove(0);
    text(&session, &format!("SELECT pg_terminate_backend({pid})")).await;
    until("it waits again", async || waiting(&session).await.iter().any(|other| *other != pid)).await;
    session.client.batch_execute(LET_GO).await.unwrap();
    until("it is done", async || done(&session, "ledger").await == [1]).await;
    assert_eq!(applied(&session).await, ["1"]);
    let history = history(&session, 1).await;
    assert_eq!(history[0], "retry terminating connection due to administrator command (SQLSTATE 57P01)");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_takes_too_long_is_ended_in_the_database_too() {
    let database = Database::new().await;
    let session = database.session().await;
    apply(&session, WAIT).await;
    session.client.batch_execute(HOLD).await.unwrap();
    // One connection: behind a function that hangs, the next attempt could not even begin.
    let retry = "timeout = \"200ms\"\nretry = { max_attempts = 1000, base = \"1ms\", max = \"1ms\" }";
    let running = start(&database, &format!("{CONFIG}{retry}\n[daemon]\npool_size = 1\n")).await;
    let event = publish(&session, "a").await;
    until("it timed out", async || history(&session, event).await.contains(&"retry timed out after 200ms".to_owned()))
        .await;
    until("it was called again", async || text(&session, "SELECT last_value FROM app.calls").await != "1").await;
    session.client.batch_execute(LET_GO).await.unwrap();
    until("it is done", async || done(&session, "ledger").await == [event]).await;
    assert_eq!(applied(&session).await, ["1"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_somebody_else_has_finished_meanwhile_has_no_effect_and_stays_finished() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = stuck(&database, &session).await;
    let finish = "INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at) \
                  VALUES (1, 'ledger', 'done', 1, now(), now())";
    session.client.batch_execute(finish).await.unwrap();
    session.client.batch_execute(LET_GO).await.unwrap();
    running.observed("the outcome is refused", |o| matches!(o, Observation::Refused { .. })).await;
    until("nothing is open", async || text(&session, "SELECT count(*) FROM outbox.open").await == "0").await;
    assert_eq!(applied(&session).await, Vec::<String>::new());
    assert_eq!(deliveries(&session, 1).await, ["ledger|done|1"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_outlives_the_lead_of_its_daemon_has_its_effect_once() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = stuck(&database, &session).await;
    until("it has a row", async || deliveries(&session, 1).await == ["ledger|running|1"]).await;
    let leader = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                  WHERE datname = current_database() AND application_name = 'outboxd leader'";
    assert_eq!(texts(&session, leader).await, ["true"]);
    running.observed("the next term finds it", |o| matches!(o, Observation::Recovered { deliveries: 1 })).await;
    until("it runs again", async || deliveries(&session, 1).await == ["ledger|running|2"]).await;
    session.client.batch_execute(LET_GO).await.unwrap();
    until("it is done", async || deliveries(&session, 1).await == ["ledger|done|2"]).await;
    until("nobody waits", async || waiting(&session).await.is_empty()).await;
    assert_eq!(applied(&session).await, ["1"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_whose_daemon_died_has_its_effect_once() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = stuck(&database, &session).await;
    until("it has a row", async || deliveries(&session, 1).await == ["ledger|running|1"]).await;
    running.kill().await;
    let running = start(&database, CONFIG).await;
    until("it runs again", async || deliveries(&session, 1).await == ["ledger|running|2"]).await;
    session.client.batch_execute(LET_GO).await.unwrap();
    until("it is done", async || deliveries(&session, 1).await == ["ledger|done|2"]).await;
    until("nobody waits", async || waiting(&session).await.is_empty()).await;
    assert_eq!(applied(&session).await, ["1"]);
    let lost = "lost the daemon ended while this attempt ran";
    until("its history is written", async || history(&session, 1).await == [lost, "done"]).await;
    running.stop().await;
}

/// What SQL handlers make of every event: a daemon whose handler in Rust calls them, and keeps what they say.
async fn overheard(database: &Database, targets: [Target; 2]) -> (Running, Arc<Mutex<Vec<Outcome>>>) {
    let function = SqlConfig { schema: "app".to_owned(), function: "apply".to_owned() };
    let handler = |target: Target| SqlHandler::new(&function, &DeliveryConfig::new(vec![]), target.pool(1).unwrap());
    let handlers = Arc::new(targets.map(handler));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heard);
    let delivery = DeliveryConfig { concurrency: 1, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let call = move |attempt: Attempt| {
        let (handlers, kept) = (Arc::clone(&handlers), Arc::clone(&kept));
        async move {
            for handler in &*handlers {
                let outcome = handler.run(&attempt).await;
                kept.lock().unwrap().push(outcome);
            }
        }
    };
    (Running::start(daemon(database).handler_with("ledger", delivery, call)).await, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_says_whether_the_function_or_the_database_is_to_blame() {
    let database = Database::new().await;
    let session = database.session().await;
    let body = "CASE e.topic WHEN 'raises' THEN RAISE EXCEPTION 'no'; \
                WHEN 'loses_its_session' THEN PERFORM pg_terminate_backend(pg_backend_pid()); \
                WHEN 'waits' THEN RETURN '{\"outcome\": \"wait\", \"timeout\": \"1h\"}'; END CASE; RETURN NULL;";
    apply(&session, body).await;
    let nobody = Target::resolve(Some("postgres://nobody@127.0.0.1:1/nowhere"), None, &|_| None).unwrap();
    let (running, heard) = overheard(&database, [database.target(), nobody]).await;
    // The lost session comes last: the pool may not know of its loss when the next attempt begins.
    for topic in ["raises", "waits", "loses_its_session"] {
        let event = publish(&session, topic).await;
        until("it was called", async || deliveries(&session, event).await == ["ledger|done|1"]).await;
    }
    running.stop().await;
    let heard = heard.lock().unwrap().clone();
    let fault = |outcome: &Outcome| match outcome {
        Outcome::Retry { failure, .. } => Some(failure.fault),
        _ => None,
    };
    let unreachable = Some(Fault::Unreachable);
    let faults = [Some(Fault::Refused), unreachable, None, unreachable, Some(Fault::Failing), unreachable];
    assert_eq!(heard.iter().map(fault).collect::<Vec<_>>(), faults, "{heard:#?}");
    assert_eq!(heard[2], Outcome::Wait { timeout: Some(Duration::from_hours(1)) });
    assert_eq!(applied(&session).await, Vec::<String>::new(), "what waits is rolled back too");
}
