//! What an operator sees with psql: the views answer, at a cost that does not grow with the log, and every column says what it is.

use outboxd::config::DeliveryConfig;
use outboxd::postgres::Session;
use outboxd::{Event, Failure, Outcome, RetryPolicy};

use crate::harness::{Database, Running, daemon, publish_many, text, texts, until};

#[tokio::test]
async fn every_table_view_and_column_has_a_comment() {
    let database = Database::new().await;
    let session = database.session().await;
    let silent = "SELECT c.relname || coalesce('.' || a.attname, '') FROM pg_class c
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
           AND c.relname <> 'refinery_schema_history'
           AND (obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL) ORDER BY 1";
    assert_eq!(texts(&session, silent).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stuck_slow_and_failed_is_a_line_each() {
    let database = Database::new().await;
    let session = database.session().await;
    let once = DeliveryConfig {
        retry: RetryPolicy { max_attempts: 1, ..RetryPolicy::default() },
        ..DeliveryConfig::new(vec!["a".parse().unwrap()])
    };
    let fails = async |attempt: outboxd::Attempt| Outcome::Retry {
        after: None,
        failure: Failure::new(format!("no mailbox {}\nat all", attempt.event.id)),
    };
    let builder = daemon(&database).handler("good", ["a"], async |_: Event| ()).handler_with("fails", once, fails);
    let running = Running::start(builder).await;
    let ids = publish_many(&session, "a", 5).await;
    until("all have ended", async || {
        text(
            &session,
            "SELECT (SELECT count(*) FROM outbox.done) + (SELECT count(*) FROM outbox.open WHERE state = 'dead')",
        )
        .await
            == "10"
    })
    .await;
    session.client.batch_execute("SELECT outbox.pause('good', reason => 'a test')").await.unwrap();
    let stuck = "SELECT concat_ws('|', handler, why, deliveries, event_id, detail) FROM outbox.stuck ORDER BY 1";
    let dead = format!("fails|dead|5|{}|no mailbox {}\nat all", ids[0], ids[0]);
    assert_eq!(texts(&session, stuck).await, [dead, "good|paused|by outboxd: a test".to_owned()]);
    let failed = "SELECT concat_ws('|', handler, outcome, attempts, events, last_event_id) FROM outbox.failed";
    assert_eq!(
        texts(&session, failed).await,
        [format!("fails|dead|5|5|{}", ids[4])],
        "one line, whatever the numbers in it"
    );
    let slow = "SELECT concat_ws('|', handler, deliveries, ran_p99 < 20, waited_p99 < 20, slowest_event_id BETWEEN 1 AND 1000) FROM outbox.slow";
    assert_eq!(texts(&session, slow).await, ["good|5|t|t|t"]);
    running.stop().await;
}

/// How many buffers a query reads.
async fn buffers(session: &Session, query: &str) -> u64 {
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}");
    let row = session.client.query_one(&explain, &[]).await.unwrap();
    let plan = &row.get::<_, serde_json::Value>(0)[0]["Plan"];
    plan["Shared Hit Blocks"].as_u64().unwrap() + plan["Shared Read Blocks"].as_u64().unwrap()
}

/// A log of so many events, all done, and as many dead letters, failures and rows that are due.
async fn fill(session: &Session, events: i32) {
    let fill = format!(
        "INSERT INTO outbox.handler (name, topics, topic_regex, kind, settings, first_id)
         VALUES ('all', '{{#}}', outbox.topic_regex('{{#}}'), 'rust', '{{}}', 0) ON CONFLICT DO NOTHING;
         WITH new AS (INSERT INTO outbox.event (topic, payload) SELECT 'a', '{{}}' FROM generate_series(1, {events}) RETURNING id),
         done AS (INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at)
                  SELECT id, 'all', 'done', 1, now(), now() FROM new),
         tried AS (INSERT INTO outbox.attempt (event_id, handler, attempt, started_at, finished_at, outcome, error)
                   SELECT id, 'all', 1, now(), now() - id * interval '1 ms', 'retry', 'no' FROM new)
         INSERT INTO outbox.open (event_id, handler, state, due_at, attempt, last_error, topic, payload, headers, priority, created_at)
         SELECT id + 100000000, 'all', CASE WHEN id % 2 = 0 THEN 'retrying' ELSE 'dead' END,
                CASE WHEN id % 2 = 0 THEN now() - interval '1 hour' END, 1, 'no', 'a', '{{}}', '{{}}', 0, now() FROM new"
    );
    session.client.batch_execute(&fill).await.unwrap();
    session
        .client
        .batch_execute("VACUUM ANALYZE outbox.event, outbox.done, outbox.open, outbox.attempt")
        .await
        .unwrap();
}

/// The question of `/metrics`, as the daemon asks it.
const GAUGES: &str = include_str!("../../sql/gauges.sql");

#[tokio::test]
async fn ten_times_the_rows_do_not_cost_ten_times_as_much() {
    let database = Database::new().await;
    let session = database.session().await;
    let queries = ["SELECT * FROM outbox.stuck", "SELECT * FROM outbox.slow", "SELECT * FROM outbox.failed", GAUGES];
    // Both sizes are above the 10,000 at which counting stops.
    fill(&session, 22_000).await;
    let mut before = Vec::new();
    for query in queries {
        before.push(buffers(&session, query).await);
    }
    fill(&session, 200_000).await;
    for (query, before) in queries.iter().zip(before) {
        let after = buffers(&session, query).await;
        assert!(after < 2 * before + 200, "{before} buffers became {after}: {query}");
    }
}
