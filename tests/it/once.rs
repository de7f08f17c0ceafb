//! `outbox.once`: what a consumer inside PostgreSQL does in its transaction happens once.

use crate::harness::{Database, text, until};

const ONCE: &str = "SELECT outbox.once('billing', '42')";

#[tokio::test(flavor = "multi_thread")]
async fn of_two_at_the_same_time_one_is_the_first() {
    let database = Database::new().await;
    let (one, other, watcher) = (database.session().await, database.session().await, database.session().await);
    for (end, second) in [("ROLLBACK", "true"), ("COMMIT", "false")] {
        watcher.client.batch_execute("TRUNCATE outbox.consumed").await.unwrap();
        one.client.batch_execute("BEGIN").await.unwrap();
        assert_eq!(text(&one, ONCE).await, "true");
        let waits = async {
            let waiting =
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            until("the other one waits", async || text(&watcher, waiting).await == "1").await;
            one.client.batch_execute(end).await.unwrap();
        };
        let (answer, ()) = tokio::join!(text(&other, ONCE), waits);
        assert_eq!(answer, second, "after {end}");
        assert_eq!(text(&one, ONCE).await, "false");
    }
    // Another consumer, another key.
    assert_eq!(text(&one, "SELECT outbox.once('mail', '42')").await, "true");
    assert_eq!(text(&one, "SELECT outbox.once('billing', '43')").await, "true");
}

#[tokio::test]
async fn a_key_is_remembered_for_the_window_and_then_forgotten() {
    let database = Database::new().await;
    let session = database.session().await;
    assert_eq!(text(&session, ONCE).await, "true");
    assert_eq!(text(&session, "SELECT expires_at > now() + interval '29 days' FROM outbox.consumed").await, "true");
    session.client.batch_execute("UPDATE outbox.consumed SET expires_at = now()").await.unwrap();
    assert_eq!((text(&session, ONCE).await, text(&session, ONCE).await), ("true".to_owned(), "false".to_owned()));

    let old = "INSERT INTO outbox.consumed SELECT 'old', n, now() - interval '1 day' FROM generate_series(1, 20500) n";
    session.client.batch_execute(old).await.unwrap();
    let running = crate::harness::Running::start(crate::harness::daemon(&database).handler(
        "h",
        ["a"],
        async |_: outboxd::Event| (),
    ))
    .await;
    until("the janitor forgets what is old", async || {
        text(&session, "SELECT count(*) FROM outbox.consumed").await == "1"
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn a_consumer_needs_two_rights_and_no_table() {
    let database = Database::new().await;
    let session = database.session().await;
    let role = format!("consumer_{}", database.name());
    let grant = format!(
        "CREATE ROLE {role}; GRANT USAGE ON SCHEMA outbox TO {role}; GRANT EXECUTE ON FUNCTION outbox.once TO {role}; SET ROLE {role}"
    );
    session.client.batch_execute(&grant).await.unwrap();
    assert_eq!(text(&session, ONCE).await, "true");
    assert!(session.client.query("SELECT * FROM outbox.consumed", &[]).await.is_err());
    let end = format!(
        "RESET ROLE; REVOKE ALL ON SCHEMA outbox FROM {role}; REVOKE ALL ON FUNCTION outbox.once FROM {role}; DROP ROLE {role}"
    );
    session.client.batch_execute(&end).await.unwrap();
}
