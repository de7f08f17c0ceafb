//! Short questions to a test's database.

use outboxd::postgres::Session;

/// Publishes an event; its id.
pub(crate) async fn publish(session: &Session, topic: &str) -> i64 {
    let query = "SELECT outbox.publish($1, '{}')";
    session.client.query_one(query, &[&topic]).await.unwrap().get(0)
}

/// Publishes so many events in one transaction; their ids.
pub(crate) async fn publish_many(session: &Session, topic: &str, count: i32) -> Vec<i64> {
    let query = "INSERT INTO outbox.event (topic, payload) SELECT $1, '{}' FROM generate_series(1, $2) RETURNING id";
    session.client.query(query, &[&topic, &count]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The first column of a query, as text.
pub(crate) async fn texts(session: &Session, query: &str) -> Vec<String> {
    let query = format!("SELECT q::text FROM ({query}) AS t (q)");
    let rows = session.client.query(&query, &[]).await.unwrap();
    rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_else(|| "null".to_owned())).collect()
}

/// The first column of a query's first row, as text.
pub(crate) async fn text(session: &Session, query: &str) -> String {
    texts(session, query).await.into_iter().next().expect("the query has a row")
}

/// `handler|state|attempts` of every delivery of an event, sorted.
pub(crate) async fn deliveries(session: &Session, event: i64) -> Vec<String> {
    let query = "SELECT handler || '|' || state || '|' || attempts FROM outbox.delivery WHERE event_id = ";
    texts(session, &format!("{query}{event} ORDER BY 1")).await
}

/// The ids of the events a handler has finished, sorted.
pub(crate) async fn done(session: &Session, handler: &str) -> Vec<i64> {
    let query = "SELECT event_id FROM outbox.done WHERE handler = $1 AND outcome = 'done' ORDER BY 1";
    session.client.query(query, &[&handler]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Rings the bell, as a producer does.
pub(crate) async fn ring(session: &Session) {
    session.client.batch_execute("NOTIFY outbox").await.unwrap();
}
