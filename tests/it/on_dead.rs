//! A dead delivery becomes an event of its own, if its handler says so.

use outboxd::postgres::Session;
use serde_json::{Value, json};

use crate::harness::{Database, text};

async fn handlers(database: &Database) -> Session {
    let session = database.session().await;
    let sql = "INSERT INTO outbox.handler (name, topics, topic_regex, kind, settings, first_id, on_dead)
               VALUES ('mail', '{#}', outbox.topic_regex('{#}'), 'rust', '{\"retry\": {\"max_attempts\": 1}}', 0, 'dead.mail'),
                      ('quiet', '{#}', outbox.topic_regex('{#}'), 'rust', '{}', 0, NULL)";
    session.client.batch_execute(sql).await.unwrap();
    session
}

/// Opens the delivery of this event, in this state.
async fn open(session: &Session, event: i64, handler: &str, state: &str) {
    let due = if state == "waiting" { "now()" } else { "NULL" };
    let sql = format!(
        "INSERT INTO outbox.open (event_id, handler, topic, key, payload, headers, priority, created_at, state, due_at, attempt, last_error)
         SELECT id, '{handler}', topic, key, payload, headers, priority, created_at, '{state}', {due}, 1, 'no such account'
         FROM outbox.event WHERE id = {event}"
    );
    session.client.batch_execute(&sql).await.unwrap();
}

async fn count(session: &Session) -> String {
    text(session, "SELECT count(*) FROM outbox.event WHERE topic = 'dead.mail'").await
}

#[tokio::test]
async fn a_death_is_told_once_however_it_comes_and_that_of_the_telling_event_is_not() {
    let database = Database::new().await;
    let session = handlers(&database).await;
    let publish = "SELECT outbox.publish('a', '{\"n\": 1}', key => 'k', headers => '{\"traceparent\": \"00-1\", \"other\": \"x\"}')";
    session.client.batch_execute(publish).await.unwrap();
    open(&session, 1, "quiet", "dead").await;
    assert_eq!(count(&session).await, "0");
    open(&session, 1, "mail", "dead").await;
    let row =
        session.client.query_one("SELECT key, payload, headers FROM outbox.event WHERE id = 2", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "k");
    assert_eq!(
        row.get::<_, Value>(1),
        json!({ "event_id": 1, "handler": "mail", "topic": "a", "key": "k", "attempts": 1, "error": "no such account",
                "payload": { "n": 1 } })
    );
    assert_eq!(
        row.get::<_, Value>(2),
        json!({ "outbox-dead-of": "1", "traceparent": "00-1", "correlation_id": "1", "causation_id": "1" })
    );

    // Retried and dead again: told again. A change of a dead row is no death.
    session.client.batch_execute("SELECT outbox.retry(1, 'mail')").await.unwrap();
    session.client.batch_execute("UPDATE outbox.open SET state = 'dead', due_at = NULL").await.unwrap();
    session.client.batch_execute("UPDATE outbox.open SET state = 'dead', last_error = 'still'").await.unwrap();
    assert_eq!(count(&session).await, "2");

    // By an answer that came too late for another attempt.
    session.client.batch_execute("SELECT outbox.publish('a', '1')").await.unwrap();
    open(&session, 4, "mail", "waiting").await;
    session.client.batch_execute("SELECT outbox.fail(4, 'mail', 'refused')").await.unwrap();
    assert_eq!(text(&session, "SELECT payload->>'error' FROM outbox.event WHERE id = 5").await, "refused");
    assert_eq!(
        text(&session, "SELECT headers::text FROM outbox.event WHERE id = 5").await,
        r#"{"causation_id": "4", "correlation_id": "4", "outbox-dead-of": "4"}"#
    );

    open(&session, 2, "mail", "dead").await;
    assert_eq!(count(&session).await, "3");
}

/// A delivery must be able to die whatever its payload is: what cannot be told is left out.
#[tokio::test]
async fn a_payload_that_fits_no_second_event_is_told_without_it() {
    let database = Database::new().await;
    let session = handlers(&database).await;
    // A string of jsonb takes 12 bytes more than its text.
    for (bytes, told) in [(16_777_216 - 12, "null"), (16_000_000, "string")] {
        let publish = format!("SELECT outbox.publish('big', to_jsonb(repeat('x', {bytes})))");
        let id: i64 = session.client.query_one(&publish, &[]).await.unwrap().get(0);
        open(&session, id, "mail", "dead").await;
        let query = format!(
            "SELECT jsonb_typeof(payload->'payload') FROM outbox.event WHERE headers->>'outbox-dead-of' = '{id}'"
        );
        assert_eq!(text(&session, &query).await, told, "{bytes} bytes");
    }
    // Copied from a table, it came into the log compressed, larger than the log takes otherwise.
    let copied = "CREATE TABLE public.blob (payload jsonb);
                  INSERT INTO blob SELECT to_jsonb(repeat('x', 20000000));
                  INSERT INTO outbox.event (topic, payload) SELECT 'huge', payload FROM blob";
    session.client.batch_execute(copied).await.unwrap();
    let id: i64 =
        session.client.query_one("SELECT id FROM outbox.event WHERE topic = 'huge'", &[]).await.unwrap().get(0);
    open(&session, id, "mail", "dead").await;
    let query =
        format!("SELECT jsonb_typeof(payload->'payload') FROM outbox.event WHERE headers->>'outbox-dead-of' = '{id}'");
    assert_eq!(text(&session, &query).await, "null");
}
