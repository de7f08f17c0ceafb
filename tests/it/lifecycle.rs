//! What every verb does to a delivery in every state: one table, reviewed cell by cell. The daemon has no part in it.

use std::fmt::Write as _;

use expect_test::expect_file;
use outboxd::postgres::Session;

use crate::harness::{Database, publish, text};

/// A name, and the row that makes a delivery of `{id}` be in this state. Attempts have been made where there can be some.
const STATES: [(&str, &str); 14] = [
    ("pending", ""),
    ("scheduled", "scheduled, now() + interval '1 hour', 0, 0, NULL, NULL"),
    ("scheduled, put off by its handler", "scheduled, now() + interval '1 hour', 2, 1, NULL, 'no'"),
    ("retrying", "retrying, now() + interval '1 hour', 2, 1, NULL, 'no'"),
    ("running", "running, NULL, 2, 1, now(), 'no'"),
    ("waiting", "waiting, now() + interval '1 hour', 1, 0, NULL, NULL"),
    ("waiting, its last attempt", "waiting, now() + interval '1 hour', 3, 2, NULL, 'no'"),
    ("blocked", "blocked, NULL, 0, 0, NULL, NULL"),
    ("blocked, its turn has come", "blocked, now(), 0, 0, NULL, NULL"),
    ("dead", "dead, NULL, 3, 3, NULL, 'no'"),
    ("done", "done"),
    ("cancelled", "cancelled"),
    ("expired", "expired"),
    ("discarded", "discarded"),
];

/// A name, and the call. A heartbeat names the attempt that runs; the other one an attempt that was taken away.
const VERBS: [(&str, &str); 10] = [
    ("retry", "outbox.retry({id}, 'mail')"),
    ("snooze", "outbox.snooze({id}, 'mail', '2 days')"),
    ("cancel", "outbox.cancel({id}, 'mail', 'not wanted')"),
    ("discard", "outbox.discard({id}, 'mail', 'not wanted')"),
    ("discard, in bulk", "outbox.discard('not wanted', handler => 'mail', topic => 'lifecycle.{id}')"),
    ("redrive", "outbox.redrive(topic => 'lifecycle.{id}')"),
    ("complete", "outbox.complete({id}, 'mail', '{\"sum\": 7}')"),
    ("fail", "outbox.fail({id}, 'mail', 'refused')"),
    ("heartbeat", "outbox.heartbeat({id}, 'mail', 2, '{\"at\": 5}')"),
    ("heartbeat, another attempt", "outbox.heartbeat({id}, 'mail', 1)"),
];

/// A new delivery of `mail` in this state, behind another one of its key if it is blocked; its event.
async fn delivery(session: &Session, state: &str) -> i64 {
    let id = publish(session, "lifecycle").await;
    // The topic names the event, so that the verbs that take a filter find this one only.
    let named = format!("UPDATE outbox.event SET topic = 'lifecycle.{id}', key = 'k{id}' WHERE id = {id}");
    session.client.batch_execute(&named).await.unwrap();
    let copy = |id: i64, row: &str| {
        format!(
            "INSERT INTO outbox.open (event_id, handler, topic, key, payload, headers, priority, created_at,
                                      state, due_at, attempt, failures, started_at, last_error)
             SELECT id, 'mail', topic, 'k{id}', payload, headers, priority, created_at, {row} FROM outbox.event
             WHERE id = {id}"
        )
    };
    let row = match state.split_once(", ") {
        _ if state.is_empty() => return id,
        Some((state, rest)) => copy(id, &format!("'{state}', {rest}")),
        None => format!(
            "INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at)
             VALUES ({id}, 'mail', '{state}', 1, now(), now())"
        ),
    };
    if state.starts_with("blocked, NULL") {
        let before = publish(session, "lifecycle.before").await;
        let before =
            copy(before, "'running', NULL, 1, 0, now(), NULL").replace(&format!("'k{before}'"), &format!("'k{id}'"));
        session.client.batch_execute(&before).await.unwrap();
    }
    session.client.batch_execute(&row).await.unwrap();
    id
}

/// State, time, failures, error, result and progress of the delivery, as far as there are some.
async fn seen(session: &Session, id: i64) -> String {
    let query = format!(
        "SELECT concat_ws(', ', d.state,
             CASE WHEN d.due_at <= now() THEN 'due now'
                  WHEN d.due_at <= now() + interval '4 seconds' THEN 'due after the pause of a retry'
                  WHEN d.due_at <= now() + interval '1 hour' THEN 'due in an hour'
                  WHEN d.due_at <= now() + interval '2 days' THEN 'due in two days' END,
             'attempts ' || nullif(d.attempts, 0), 'failures ' || o.failures, 'error ' || d.last_error,
             'result ' || d.result::text, 'progress ' || d.progress::text,
             (SELECT 'the daemon is told' FROM outbox.cancelling c WHERE c.event_id = d.event_id))
         FROM outbox.delivery d LEFT JOIN outbox.open o USING (event_id, handler)
         WHERE d.event_id = {id} AND d.handler = 'mail'"
    );
    text(session, &query).await
}

#[tokio::test]
async fn every_verb_does_to_a_delivery_in_every_state_what_was_reviewed() {
    let database = Database::new().await;
    let session = database.session().await;
    let handler = "INSERT INTO outbox.handler (name, topics, topic_regex, kind, settings, first_id, ordered)
                   VALUES ('mail', '{lifecycle.#}', outbox.topic_regex('{lifecycle.#}'), 'rust',
                           '{\"retry\": {\"max_attempts\": 3, \"backoff\": \"fixed\", \"base_seconds\": 4, \"max_seconds\": 60}}', 0, 'block')";
    session.client.batch_execute(handler).await.unwrap();
    let mut table = String::new();
    for (state, row) in STATES {
        let untouched = seen(&session, delivery(&session, row).await).await;
        let _ = writeln!(table, "{state}\n    {:<28}{untouched}", "");
        for (verb, call) in VERBS {
            let id = delivery(&session, row).await;
            let answer = text(&session, &format!("SELECT {}", call.replace("{id}", &id.to_string()))).await;
            let after = seen(&session, id).await;
            let after = if after == untouched { "the same" } else { &after };
            let _ = writeln!(table, "    {verb:<28}{answer:<7}{after}");
        }
    }
    expect_file!["../snapshots/lifecycle.txt"].assert_eq(&table);
}
