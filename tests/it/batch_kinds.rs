//! What each kind of handler gets for a batch, and how it answers for each event.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use outboxd::postgres::Session;
use serde_json::{Value, json};

use crate::batch::insert;
use crate::handlers::{QUICK, history, start};
use crate::harness::{ConfigFile, Database, deliveries, done, outboxd_output, publish, text, texts, until};

/// What a server was sent: headers and body of each request.
type Seen = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

/// A server that fails the first time, and then answers for each event.
async fn server() -> (String, Seen) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Seen::default();
    let kept = Arc::clone(&seen);
    let answer = move |headers: HeaderMap, body: String| async move {
        let events: Value = serde_json::from_str(&body).unwrap();
        kept.lock().unwrap().push((headers, events.clone()));
        if events[0]["outboxattempt"] == 1 {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let of = |event: &Value| {
            let id = event["id"].as_str().unwrap().to_owned();
            match event["data"]["n"].as_i64() {
                Some(1) => Some((id, json!({ "outcome": "dead", "error": "no such user" }))),
                Some(2) => Some((id, json!({ "outcome": "done", "result": 7, "emit": [{ "topic": "next" }] }))),
                _ => None,
            }
        };
        let outcomes: serde_json::Map<String, Value> = events.as_array().unwrap().iter().filter_map(of).collect();
        let json = json!({ "outcomes": outcomes }).to_string();
        ([("content-type", "application/json")], json).into_response()
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    (url, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn http_gets_a_cloud_events_batch_and_answers_by_id() {
    let database = Database::new().await;
    let session = database.session().await;
    let (url, seen) = server().await;
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let config = format!(
        "[handler.index]\ntopics = [\"a\"]\nhttp = {{ url = \"{url}\", secret = \"{secret}\" }}\n\
         batch = {{ max = 4, wait = \"10m\" }}\n{QUICK}\n"
    );
    let running = start(&database, &config).await;
    let ids = insert(&session, 4).await;
    let states = ["dead", "done", "done", "done"];
    for (id, state) in ids.iter().zip(states) {
        until("it has ended", async || deliveries(&session, *id).await == [format!("index|{state}|2")]).await;
    }
    assert_eq!(history(&session, ids[0]).await[1], "dead no such user");
    assert_eq!(text(&session, "SELECT result FROM outbox.done WHERE result IS NOT NULL").await, "7");
    let next = "SELECT headers->>'outbox-cause' FROM outbox.event WHERE topic = 'next'";
    assert_eq!(texts(&session, next).await.len(), 1);
    let seen = seen.lock().unwrap().clone();
    let (headers, events) = &seen[0];
    assert_eq!(headers["content-type"], "application/cloudevents-batch+json");
    assert_eq!(headers["outbox-handler"], "index");
    assert!(headers["webhook-signature"].to_str().unwrap().starts_with("v1,"));
    assert_ne!(headers["webhook-id"], seen[1].0["webhook-id"], "another message: it may be in other company");
    let first = events[0].as_object().unwrap();
    assert_eq!(first["specversion"], "1.0");
    assert_eq!(first["id"], ids[0].to_string());
    assert_eq!((&first["type"], &first["subject"], &first["data"]), (&json!("a"), &json!("1"), &json!({ "n": 1 })));
    assert_eq!(first["datacontenttype"], "application/json");
    assert!(first["source"].as_str().unwrap().starts_with("/outboxd/"));
    let again = seen[1..].iter().flat_map(|(_, events)| events.as_array().unwrap()).find(|e| e["id"] == first["id"]);
    assert_eq!(first["idempotencykey"], again.unwrap()["idempotencykey"], "one key for every attempt");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gets_the_batch_on_its_stdin() {
    let database = Database::new().await;
    let session = database.session().await;
    // The first event of the batch is put off; the others are done.
    let script = r#"read -r events; test "$OUTBOX_BATCH" = 3 || exit 0
        id=$(printf %s "$events" | grep -o '"id":"[0-9]*"' | head -n 1 | tr -dc 0-9)
        echo '{"progress": 1}'
        echo "{\"outcomes\": {\"$id\": {\"outcome\": \"retry\", \"error\": \"again\"}}}""#;
    let config = format!(
        "[handler.all]\ntopics = [\"a\"]\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\n\
         batch = {{ max = 3, wait = \"10m\" }}\n{QUICK}\n"
    );
    let running = start(&database, &config).await;
    let ids = insert(&session, 3).await;
    until("all are done", async || done(&session, "all").await == ids).await;
    until("the history is written", async || history(&session, ids[0]).await == ["retry again", "done"]).await;
    assert_eq!(deliveries(&session, ids[1]).await, ["all|done|1"]);
    running.stop().await;
}

/// A function that keeps the ids of a batch, and then does this with `es`.
async fn apply(session: &Session, body: &str) {
    let text = format!(
        "CREATE SCHEMA app; CREATE TABLE app.applied (event bigint, calls bigint); CREATE SEQUENCE app.calls; \
         CREATE FUNCTION app.apply(es outbox.event[]) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM nextval('app.calls'); \
         INSERT INTO app.applied SELECT e.id, currval('app.calls') FROM unnest(es) e; {body} END $$"
    );
    session.client.batch_execute(&text).await.unwrap();
}

const SQL: &str = "[handler.ledger]\ntopics = [\"a\"]\nsql = \"app.apply\"\nbatch = { max = 4, wait = \"10m\" }\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_sql_function_takes_an_array_and_ends_with_it_exactly_once() {
    let database = Database::new().await;
    let session = database.session().await;
    let body = "IF currval('app.calls') = 1 THEN RAISE EXCEPTION 'not yet'; END IF; \
                RETURN jsonb_build_object('outcomes', (SELECT jsonb_object_agg(e.id, CASE e.payload->>'n' \
                WHEN '1' THEN '{\"outcome\": \"done\", \"result\": \"one\", \"emit\": [{\"topic\": \"next\"}]}'::jsonb \
                ELSE '{\"outcome\": \"snooze\", \"after\": 3600}' END) FROM unnest(es) e WHERE e.payload->>'n' IN ('1', '2')));";
    let file = ConfigFile::new(SQL);
    let check = async || outboxd_output(Some(&database), &["check", "--config", file.path()]).await.stdout;
    let told = |stdout: Vec<u8>| String::from_utf8(stdout).unwrap();
    assert!(told(check().await).contains("there is no function app.apply(outbox.event[])"));
    apply(&session, body).await;
    assert!(told(check().await).contains("handler ledger: app.apply is there"));
    let running = start(&database, &format!("{SQL}{QUICK}\n")).await;
    let ids = insert(&session, 4).await;
    let good = [ids[0], ids[2], ids[3]];
    until("three are done", async || done(&session, "ledger").await == good).await;
    until("one is put off", async || deliveries(&session, ids[1]).await == ["ledger|scheduled|2"]).await;
    // What a call did is rolled back, or committed with the ends of its deliveries.
    let twice =
        "SELECT event FROM app.applied a JOIN outbox.done d ON d.event_id = a.event GROUP BY 1 HAVING count(*) <> 1";
    assert_eq!(texts(&session, twice).await, Vec::<String>::new());
    assert_eq!(text(&session, "SELECT result FROM outbox.done WHERE result IS NOT NULL").await, "\"one\"");
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event WHERE topic = 'next'").await, "1");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_cancelled_during_the_function_is_left_out_and_the_others_are_done() {
    let database = Database::new().await;
    let session = database.session().await;
    apply(&session, "PERFORM pg_advisory_xact_lock(42); RETURN NULL;").await;
    session.client.batch_execute("SELECT pg_advisory_lock(42)").await.unwrap();
    let running = start(&database, &format!("{SQL}record = \"start\"\n")).await;
    let ids = insert(&session, 4).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                   AND application_name = 'outboxd pool' AND wait_event_type = 'Lock'";
    until("the function waits", async || text(&session, waiting).await == "1").await;
    // As an operator without the daemon's help: the row is gone, and the daemon has not heard of it.
    let gone = format!("DELETE FROM outbox.open WHERE event_id = {}", ids[2]);
    session.client.batch_execute(&gone).await.unwrap();
    session.client.batch_execute("SELECT pg_advisory_unlock(42)").await.unwrap();
    let good = [ids[0], ids[1], ids[3]];
    until("the others are done", async || done(&session, "ledger").await == good).await;
    let applied = texts(&session, "SELECT event FROM app.applied ORDER BY 1").await;
    assert_eq!(applied, good.map(|id| id.to_string()), "what it did for that one is rolled back");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_wrong_is_a_failure_of_all_that_says_why() {
    let database = Database::new().await;
    let session = database.session().await;
    let script = |name: &str, answer: &str| {
        format!(
            "[handler.{name}]\ntopics = [\"a\"]\ncommand = [\"/bin/echo\", '''{answer}''']\nretry = {{ max_attempts = 1 }}\n\
             batch = {{ max = 2, wait = \"0s\" }}\n"
        )
    };
    let config = [
        script("both", r#"{"outcome": "done", "outcomes": {}}"#),
        script("emits", r#"{"outcome": "done", "emit": []}"#),
        script("list", r#"{"outcomes": ["done"]}"#),
        script("stranger", r#"{"outcomes": {"4711": {"outcome": "done"}}}"#),
        script("unknown", r#"{"outcomes": {"1": {"outcome": "good"}}}"#),
    ];
    let running = start(&database, &config.concat()).await;
    publish(&session, "a").await;
    let errors = "SELECT handler || ': ' || last_error FROM outbox.open WHERE state = 'dead' ORDER BY 1";
    let expected = [
        "both: the answer has \"outcome\" and \"outcomes\"; the first counts for the whole batch",
        "emits: the answer for a batch has \"emit\" and does not say of which event; use \"outcomes\"",
        "list: the answer's \"outcomes\" is [\"done\"]; it must be an object such as {\"17\": {\"outcome\": \"retry\"}}",
        "stranger: the answer's \"outcomes\" has 4711, which is no event of the batch",
        "unknown: event 1: the answer's \"outcome\" is \"good\"; it must be \"done\", \"retry\", \"snooze\", \"wait\" or \"dead\"",
    ];
    until("all are dead", async || texts(&session, errors).await == expected).await;
    running.stop().await;
}
