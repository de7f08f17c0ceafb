//! An INSERT never fails for lack of a partition, and making partitions is in nobody's way.

use crate::harness::{ConfigFile, Database, Gate, Process, deliveries, publish, text, texts, until};

const JUMP: &str = "SELECT setval(pg_get_serial_sequence('outbox.event', 'id'), 50000000)";

/// The partitions above it.
const ABOVE: [&str; 4] = ["event_p51000000", "event_p52000000", "event_p53000000", "event_p54000000"];

async fn names(session: &outboxd::postgres::Session) -> Vec<String> {
    let query = "SELECT relname FROM pg_class WHERE relname ~ '^event_p\\d+$' AND relkind = 'r' \
                 ORDER BY substring(relname, 8)::bigint";
    texts(session, query).await
}

#[tokio::test]
async fn without_a_daemon_for_long_the_default_partition_takes_the_events_until_one_comes() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let session = database.session().await;
    text(&session, JUMP).await;
    let event = publish(&session, "a").await;
    assert_eq!(event, 50_000_001);
    assert_eq!(text(&session, "SELECT tableoid::regclass FROM outbox.event").await, "outbox.event_default");

    let config = ConfigFile::new(&format!("[handler.slow]\ntopics = [\"#\"]\n{}", gate.command()));
    let _daemon = Process::run(&database, &config);
    until("it is delivered", async || deliveries(&session, event).await == ["slow|done|1"]).await;
    until("there are partitions above it", async || names(&session).await.ends_with(&ABOVE.map(ToOwned::to_owned)))
        .await;
    // An event of the range that the default partition keeps, and one of the first partition above it.
    let event = publish(&session, "a").await;
    until("it is delivered", async || deliveries(&session, event).await == ["slow|done|1"]).await;
    text(&session, "SELECT setval(pg_get_serial_sequence('outbox.event', 'id'), 51000000)").await;
    let event = publish(&session, "a").await;
    until("it is delivered", async || deliveries(&session, event).await == ["slow|done|1"]).await;
    let table = format!("SELECT tableoid::regclass FROM outbox.event WHERE id = {event}");
    assert_eq!(text(&session, &table).await, "outbox.event_p51000000");
    let table = format!("SELECT tableoid::regclass FROM outbox.done WHERE event_id = {event}");
    assert_eq!(text(&session, &table).await, "outbox.done_p51000000");
}

#[tokio::test]
async fn partitions_are_made_once_however_often_and_by_how_many_it_is_asked() {
    let database = Database::new().await;
    let session = database.session().await;
    assert_eq!(
        names(&session).await,
        ["event_p0", "event_p1000000", "event_p2000000", "event_p3000000", "event_p4000000"]
    );
    assert_eq!(text(&session, "SELECT outbox.add_partitions()").await, "0");
    assert_eq!(text(&session, "SELECT outbox.add_partitions(6)").await, "2");

    text(&session, JUMP).await;
    let mut makers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let session = database.session().await;
        makers.spawn(async move { text(&session, "SELECT outbox.add_partitions()").await.parse::<i32>().unwrap() });
    }
    let made = makers.join_all().await;
    assert_eq!(made.iter().filter(|&&made| made > 0).count(), 1, "{made:?}");
    let all = names(&session).await;
    assert_eq!(all[all.len() - 4..], ABOVE);
    assert_eq!(text(&session, "SELECT outbox.add_partitions()").await, "0");
}

#[tokio::test]
async fn partitions_can_be_made_beside_a_producer_that_has_not_committed() {
    let database = Database::new().await;
    let session = database.session().await;
    let mut producer = database.session().await;
    let transaction = producer.client.transaction().await.unwrap();
    transaction.batch_execute("SELECT outbox.publish('a', '{}')").await.unwrap();
    assert_eq!(text(&session, "SELECT outbox.add_partitions(5)").await, "1");
    transaction.commit().await.unwrap();

    // One whose rows went to the default partition is in the way: then it is for the next call, and nobody waits.
    text(&session, JUMP).await;
    let transaction = producer.client.transaction().await.unwrap();
    transaction.batch_execute("SELECT outbox.publish('a', '{}')").await.unwrap();
    assert_eq!(text(&session, "SELECT outbox.add_partitions()").await, "0");
    publish(&session, "a").await;
    transaction.commit().await.unwrap();
    assert_eq!(text(&session, "SELECT outbox.add_partitions()").await, "4");
}

#[tokio::test]
async fn a_partition_is_as_large_as_the_rate_asks_for_and_grows_by_steps() {
    let database = Database::new().await;
    let session = database.session().await;
    // One event in this second, and the ids of a burst given out since.
    publish(&session, "a").await;
    let give_out = |last: i64| format!("SELECT setval(pg_get_serial_sequence('outbox.event', 'id'), {last})");
    let sizes = async || texts(&session, "SELECT next_id - first_id FROM outbox.partitions() ORDER BY first_id").await;
    assert_eq!(sizes().await, ["1000000"; 5]);

    // The rate is that of the last million ids: two a second are 172,800 in a day, and a partition has a million at least.
    let pass = "UPDATE outbox.event SET created_at = now() - interval '500,000 seconds'";
    session.client.batch_execute(&pass.replace(',', "")).await.unwrap();
    text(&session, &give_out(1_000_000)).await;
    assert_eq!(text(&session, "SELECT outbox.add_partitions(lasting => '1 day')").await, "1");
    assert_eq!(sizes().await[5..], ["1000000"]);
    // Twenty days of it are 3,456,000.
    assert_eq!(text(&session, "SELECT outbox.add_partitions(5, '20 days')").await, "1");
    assert_eq!(sizes().await[6..], ["4000000"]);

    // A hundred a second would be 8,640,000 in a day; 10,000 are more than four times as many as the one before had.
    let pass = "UPDATE outbox.event SET created_at = now() - interval '10000 seconds'";
    session.client.batch_execute(pass).await.unwrap();
    assert_eq!(text(&session, "SELECT outbox.add_partitions(6, '1 day')").await, "1");
    assert_eq!(sizes().await[7..], ["9000000"]);
    let pass = "UPDATE outbox.event SET created_at = now() - interval '100 seconds'";
    session.client.batch_execute(pass).await.unwrap();
    assert_eq!(text(&session, "SELECT outbox.add_partitions(9, '1 day')").await, "3");
    assert_eq!(sizes().await[8..], ["36000000", "144000000", "576000000"]);
    // A thousand of the smallest are the most; a clock that was set says nothing.
    assert_eq!(text(&session, "SELECT outbox.add_partitions(10, '1000 days')").await, "1");
    session.client.batch_execute("UPDATE outbox.event SET created_at = '2100-01-01'").await.unwrap();
    assert_eq!(text(&session, "SELECT outbox.add_partitions(11, '1 day')").await, "1");
    assert_eq!(sizes().await[11..], ["1000000000", "1000000"]);
    let gaps = "SELECT count(*) FROM (SELECT first_id - lag(next_id) OVER (ORDER BY first_id) AS gap FROM outbox.partitions()) g WHERE gap <> 0";
    assert_eq!(text(&session, gaps).await, "0");
}
