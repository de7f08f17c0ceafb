//! Flows: steps follow each other, in memory as long as all goes well and in rows as soon as it does not; what has failed is undone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::config::DeliveryConfig;
use outboxd::daemon::Flow;
use outboxd::flow::{OnDeadStep, Undo};
use outboxd::postgres::Session;
use outboxd::{Attempt, Failure, Outcome, RetryPolicy};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::harness::{Database, Running, daemon, deliveries, publish, text, texts, until};

/// What the handlers of a test do, by name: an answer for each call, then success; and what they were called with.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Mutex<Acts>>);

#[derive(Default)]
struct Acts {
    answers: BTreeMap<String, VecDeque<Outcome>>,
    calls: Vec<(String, u32, Value)>,
    held: BTreeMap<String, Arc<Notify>>,
}

impl Script {
    pub(crate) fn answers(&self, handler: &str, answers: impl IntoIterator<Item = Outcome>) {
        self.0.lock().unwrap().answers.entry(handler.to_owned()).or_default().extend(answers);
    }

    /// Calls of this handler do not end before they are let go, one by one.
    pub(crate) fn hold(&self, handler: &str) -> Arc<Notify> {
        Arc::clone(self.0.lock().unwrap().held.entry(handler.to_owned()).or_default())
    }

    /// How many calls begin with this.
    pub(crate) fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|other| other.starts_with(call)).count()
    }

    /// `step attempt` of every call, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().calls.iter().map(|(name, attempt, _)| format!("{name} {attempt}")).collect()
    }

    /// Calls that begin from here on end again.
    pub(crate) fn hold_no_more(&self, handler: &str) {
        self.0.lock().unwrap().held.remove(handler);
    }

    pub(crate) fn results(&self, handler: &str) -> Value {
        let acts = self.0.lock().unwrap();
        acts.calls.iter().rfind(|call| call.0 == handler).map(|call| call.2.clone()).expect("it was called")
    }

    pub(crate) fn handler(
        &self,
    ) -> impl Fn(Attempt) -> outboxd::handler::OutcomeFuture<'static> + Send + Sync + 'static + use<> {
        let script = self.clone();
        move |attempt: Attempt| {
            let script = script.clone();
            Box::pin(async move {
                let name = attempt.handler.split_once('/').map_or(&*attempt.handler, |(_, step)| step).to_owned();
                let (answer, held) = {
                    let mut acts = script.0.lock().unwrap();
                    let results = attempt.results.as_deref().cloned().unwrap_or_default();
                    acts.calls.push((name.clone(), attempt.number, results));
                    let answer = acts.answers.get_mut(&name).and_then(VecDeque::pop_front);
                    (answer, acts.held.get(&name).cloned())
                };
                if let Some(held) = held {
                    held.notified().await;
                }
                answer.unwrap_or_else(|| Outcome::done_with(format!("{name} is done")))
            })
        }
    }
}

pub(crate) fn fast() -> DeliveryConfig {
    let (base, max) = (Duration::from_millis(1), Duration::from_millis(1));
    let retry = RetryPolicy { max_attempts: 2, base, max, ..RetryPolicy::default() };
    DeliveryConfig { retry, timeout: Duration::from_hours(1), ..DeliveryConfig::new(Vec::new()) }
}

fn retry() -> Outcome {
    Outcome::Retry { after: None, failure: Failure::new("not now") }
}

fn dead() -> Outcome {
    Outcome::Dead { failure: Failure::new("never") }
}

pub(crate) fn wait() -> Outcome {
    Outcome::Wait { timeout: None }
}

/// stock, then payment and parcel beside each other, then told; all but the last can be undone.
pub(crate) fn order(script: &Script) -> Flow {
    Flow::new("order", ["placed"])
        .step_with("stock", &[], fast(), script.handler())
        .compensate_with(Undo::Done, fast(), script.handler())
        .step_with("payment", &["stock"], fast(), script.handler())
        .compensate_with(Undo::Begun, fast(), script.handler())
        .step_with("parcel", &["stock"], fast(), script.handler())
        .compensate_with(Undo::Done, fast(), script.handler())
        .step_with("told", &["payment", "parcel"], fast(), script.handler())
}

/// One step after the other: a, b, c, d, e, of which all can be undone.
pub(crate) fn chain(script: &Script) -> Flow {
    let mut flow = Flow::new("chain", ["placed"]);
    let steps = ["a", "b", "c", "d", "e"];
    for (i, name) in steps.iter().enumerate() {
        let after: &[&str] = if i == 0 { &[] } else { &steps[i - 1..i] };
        flow =
            flow.step_with(name, after, fast(), script.handler()).compensate_with(Undo::Done, fast(), script.handler());
    }
    flow
}

pub(crate) async fn is(session: &Session, event: i64, flow: &str, state: &str) {
    let query = format!("SELECT state FROM outbox.delivery WHERE event_id = {event} AND handler = '{flow}'");
    until(&format!("{flow} of event {event} is {state}"), async || texts(session, &query).await == [state]).await;
}

pub(crate) async fn nothing_is_open(session: &Session) {
    until("nothing is open", async || text(session, "SELECT count(*) FROM outbox.open").await == "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_follow_each_other_and_hear_the_results_before_them() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let flow = order(&script).on_done("order.done");
    let running = Running::start(daemon(&database).flow(flow)).await;
    script.answers("parcel", [Outcome::done()]);
    let event = publish(&session, "placed").await;
    is(&session, event, "order", "done").await;
    let mut calls = script.calls();
    assert_eq!((calls.remove(0), calls.pop().unwrap()), ("stock 1".to_owned(), "told 1".to_owned()));
    calls.sort();
    assert_eq!(calls, ["parcel 1", "payment 1"]);
    assert_eq!(script.results("stock"), json!({}));
    assert_eq!(script.results("payment"), json!({ "stock": "stock is done" }));
    let before = json!({ "stock": "stock is done", "payment": "payment is done", "parcel": null });
    assert_eq!(script.results("told"), before);
    let all =
        ["order/parcel|done|1", "order/payment|done|1", "order/stock|done|1", "order/told|done|1", "order|done|1"];
    assert_eq!(deliveries(&session, event).await, all);
    let result = text(&session, "SELECT result FROM outbox.done WHERE handler = 'order'").await;
    let together = json!({ "stock": "stock is done", "payment": "payment is done", "told": "told is done" });
    assert_eq!(serde_json::from_str::<Value>(&result).unwrap(), together);
    let told = text(&session, "SELECT payload->'result' FROM outbox.event WHERE topic = 'order.done'").await;
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap(), together);
    let flow = "SELECT concat_ws(' ', flow, state, steps->'told'->>'state', stands_at) FROM outbox.flow";
    assert_eq!(texts(&session, flow).await, ["order done done"]);
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.attempt").await, "0", "nothing had a row");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_does_not_simply_succeed_takes_the_flow_into_rows_and_it_ends_all_the_same() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let flow = order(&script).on_done("order.done");
    let running = Running::start(daemon(&database).flow(flow)).await;
    for step in ["stock", "payment", "parcel", "told"] {
        script.answers(step, [retry()]);
        let event = publish(&session, "placed").await;
        is(&session, event, "order", "done").await;
        let states = texts(&session, &format!("SELECT outcome FROM outbox.done WHERE event_id = {event}")).await;
        assert_eq!(states, ["done"; 5], "{step} was retried");
        let told = format!(
            "SELECT payload->'result'->>'told' FROM outbox.event WHERE topic = 'order.done' AND payload->>'event_id' = '{event}'"
        );
        assert_eq!(texts(&session, &told).await, ["told is done"]);
        let before = json!({ "stock": "stock is done", "payment": "payment is done", "parcel": "parcel is done" });
        assert_eq!(script.results("told"), before, "{step} was retried");
    }
    nothing_is_open(&session).await;
    assert_eq!(script.calls().len(), 4 * 5);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_step_is_made_good_in_reverse_and_the_initiator_is_told() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let flow = chain(&script).on_dead("order.failed").on_done("order.done");
    let running = Running::start(daemon(&database).flow(flow)).await;
    script.answers("d", [dead()]);
    // A compensation has retries of its own.
    script.answers("b/compensate", [retry()]);
    let event = publish(&session, "placed").await;
    is(&session, event, "chain", "compensated").await;
    let calls = ["a 1", "b 1", "c 1", "d 1", "c/compensate 1", "b/compensate 1", "b/compensate 2", "a/compensate 1"];
    assert_eq!(script.calls(), calls);
    assert_eq!(script.results("a/compensate"), json!({ "a": "a is done", "b": "b is done", "c": "c is done" }));
    nothing_is_open(&session).await;
    let all = [
        "chain/a/compensate|done|1",
        "chain/a|done|1",
        "chain/b/compensate|done|2",
        "chain/b|done|1",
        "chain/c/compensate|done|1",
        "chain/c|done|1",
        "chain/d|discarded|1",
        "chain|compensated|1",
    ];
    assert_eq!(deliveries(&session, event).await, all);
    let failed = texts(
        &session,
        "SELECT concat_ws(' ', payload->>'handler', payload->>'error') FROM outbox.event WHERE topic = 'order.failed'",
    )
    .await;
    assert_eq!(failed, ["chain step d: never"]);
    let flow = "SELECT concat_ws(' | ', state, last_error, steps->'d'->>'state') FROM outbox.flow";
    assert_eq!(texts(&session, flow).await, ["compensated | step d: never | discarded"]);
    let result = text(&session, "SELECT result->'compensated' FROM outbox.done WHERE handler = 'chain'").await;
    assert_eq!(result, r#"["c", "b", "a"]"#);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_begun_and_died_is_undone_where_that_is_asked_for() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).flow(order(&script))).await;
    script.answers("payment", [retry(), retry()]);
    let event = publish(&session, "placed").await;
    is(&session, event, "order", "compensated").await;
    let undone: Vec<String> = script.calls().into_iter().filter(|call| call.contains('/')).collect();
    // In the order of the definition, turned round: among equals by name.
    assert_eq!(undone, ["payment/compensate 1", "parcel/compensate 1", "stock/compensate 1"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_that_holds_goes_on_from_its_dead_step_or_is_given_up() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let flow = chain(&script).on_dead_step(OnDeadStep::Hold).on_dead("order.failed");
    let running = Running::start(daemon(&database).flow(flow)).await;
    for verb in [
        "SELECT outbox.retry(event_id, 'chain')",
        "SELECT outbox.retry(event_id, 'chain/c')",
        "SELECT outbox.redrive('chain/c') = 1",
        "SELECT outbox.redrive() = 1",
    ] {
        script.answers("c", [dead()]);
        let event = publish(&session, "placed").await;
        is(&session, event, "chain", "dead").await;
        let flow =
            format!("SELECT concat_ws(' | ', state, last_error, stands_at) FROM outbox.flow WHERE event_id = {event}");
        assert_eq!(texts(&session, &flow).await, ["dead | step c: never | {c}"]);
        assert_eq!(text(&session, &format!("{verb} FROM (SELECT {event} AS event_id) x")).await, "true", "{verb}");
        is(&session, event, "chain", "done").await;
    }
    script.answers("c", [dead()]);
    let event = publish(&session, "placed").await;
    is(&session, event, "chain", "dead").await;
    assert_eq!(text(&session, &format!("SELECT outbox.discard({event}, 'chain', 'no use')")).await, "true");
    is(&session, event, "chain", "compensated").await;
    assert_eq!(text(&session, &format!("SELECT outbox.retry({event}, 'chain')")).await, "false");
    nothing_is_open(&session).await;
    let failed = "SELECT count(*) FROM outbox.event WHERE topic = 'order.failed'";
    assert_eq!(text(&session, failed).await, "6", "five that held, and one that was made good");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_can_be_undone_the_dead_step_waits_to_be_retried() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let flow = Flow::new("ocr", ["placed"]).step_with("submit", &[], fast(), script.handler()).step_with(
        "index",
        &["submit"],
        fast(),
        script.handler(),
    );
    let running = Running::start(daemon(&database).flow(flow)).await;
    script.answers("index", [dead()]);
    let event = publish(&session, "placed").await;
    is(&session, event, "ocr", "dead").await;
    assert_eq!(
        text(&session, &format!("SELECT outbox.wait_for({event})")).await,
        "true",
        "nobody waits for what is dead"
    );
    assert_eq!(text(&session, &format!("SELECT outbox.retry({event}, 'ocr/index')")).await, "true");
    is(&session, event, "ocr", "done").await;
    assert_eq!(script.calls(), ["submit 1", "index 1", "index 2"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_compensation_is_shown_and_redriven() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).flow(chain(&script))).await;
    script.answers("c", [dead()]);
    script.answers("b/compensate", [dead()]);
    let event = publish(&session, "placed").await;
    is(&session, event, "chain", "dead").await;
    let flow = "SELECT concat_ws(' | ', state, last_error, stands_at) FROM outbox.flow";
    let why = "dead | compensation of b: never; it undoes: step c: never | {b/compensate,c}";
    assert_eq!(texts(&session, flow).await, [why]);
    // The step that has died does not run again: what was before it is being undone.
    assert_eq!(text(&session, &format!("SELECT outbox.retry({event}, 'chain/c')")).await, "false");
    assert_eq!(text(&session, "SELECT outbox.redrive()").await, "1");
    is(&session, event, "chain", "compensated").await;
    let calls = ["a 1", "b 1", "c 1", "b/compensate 1", "b/compensate 2", "a/compensate 1"];
    assert_eq!(script.calls(), calls);
    assert_eq!(texts(&session, "SELECT last_error FROM outbox.flow").await, ["step c: never"]);
    nothing_is_open(&session).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_that_end_at_the_same_time_let_the_next_step_begin_once() {
    let (database, script) = (Database::new().await, Script::default());
    let session = database.session().await;
    let running = Running::start(daemon(&database).flow(order(&script))).await;
    let other = database.session().await;
    for _ in 0..20 {
        script.answers("payment", [wait()]);
        script.answers("parcel", [wait()]);
        let event = publish(&session, "placed").await;
        let waiting = format!(
            "SELECT count(*) FROM outbox.open WHERE event_id = {event} AND state = 'waiting' AND flow IS NOT NULL"
        );
        until("both wait", async || text(&session, &waiting).await == "2").await;
        is(&session, event, "order", "waiting").await;
        // Neither sees what the other one has done before it commits.
        let complete = |step: &str| format!("SELECT outbox.complete({event}, 'order/{step}')");
        session.client.batch_execute(&format!("BEGIN; {}", complete("payment"))).await.unwrap();
        let second = async { other.client.batch_execute(&complete("parcel")).await.unwrap() };
        let first = async { session.client.batch_execute("COMMIT").await.unwrap() };
        tokio::join!(second, first);
        is(&session, event, "order", "done").await;
    }
    assert_eq!(script.calls().iter().filter(|call| *call == "told 1").count(), 20);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_in_sql_is_done_exactly_once_with_what_follows_from_it() {
    let database = Database::new().await;
    let session = database.session().await;
    let functions = "
        CREATE TABLE said (step text, results jsonb);
        CREATE FUNCTION lock(event outbox.event, results jsonb) RETURNS jsonb LANGUAGE sql AS $$
            INSERT INTO said VALUES ('lock', results); SELECT '{\"shelf\": 7}'::jsonb $$;
        CREATE SEQUENCE asked;
        CREATE FUNCTION book(event outbox.event, results jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO said VALUES ('book', results);
            -- A sequence is not rolled back.
            IF nextval('asked') < 2 THEN
                RETURN '{\"outcome\": \"snooze\", \"after\": \"100ms\"}';
            END IF;
            RETURN NULL;
        END $$;
        CREATE FUNCTION thank(event outbox.event, results jsonb) RETURNS jsonb LANGUAGE sql AS $$
            INSERT INTO said VALUES ('thank', results); SELECT NULL::jsonb $$;";
    session.client.batch_execute(functions).await.unwrap();
    let config = "
        [flow.order]
        on = \"placed\"
        [flow.order.step.lock]
        sql = \"public.lock\"
        [flow.order.step.book]
        after = [\"lock\"]
        sql = \"public.book\"
        [flow.order.step.thank]
        after = [\"book\"]
        sql = \"public.thank\"
    ";
    let config = outboxd::Config::parse(config, "test.toml", &|_| None).unwrap();
    let running = Running::start(daemon(&database).config(config)).await;
    let event = publish(&session, "placed").await;
    is(&session, event, "order", "done").await;
    // What a function has done that asks for a snooze is rolled back.
    assert_eq!(texts(&session, "SELECT step FROM said").await, ["lock", "book", "thank"]);
    assert_eq!(
        text(&session, "SELECT results FROM said WHERE step = 'thank'").await,
        r#"{"book": null, "lock": {"shelf": 7}}"#
    );
    running.stop().await;
}
