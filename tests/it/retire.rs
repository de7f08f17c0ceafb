//! What goes is in nobody's way, and nothing that is still under way is lost: each step of retention against transactions
//! that are open, prepared, late, or only look.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outboxd::Observation;
use outboxd::config::{Config, DaemonConfig};
use outboxd::postgres::Session;
use outboxd::store::Store;
use outboxd::store::retention::{Checked, Partition};

use crate::harness::workload::{Ledger, Producers, Receipts, Shape, insert, scaled};
use crate::harness::{Database, Running, daemon, text, until, until_within};
use crate::retention::{days_pass, log, partitions, small_partitions};

const WEEK: Duration = Duration::from_hours(7 * 24);
const OLD: &str =
    "INSERT INTO outbox.event (topic, payload, created_at) VALUES ('a', '{}', now() - interval '30 days')";

/// What the daemon does in a round, by the steps.
struct Janitor(Store);

impl Janitor {
    async fn new(database: &Database) -> Self {
        Self(Store::new(database.session().await))
    }

    /// The first ids of the partitions that a glance takes for old.
    async fn old(&self) -> Vec<i64> {
        self.0.old_partitions(WEEK).await.unwrap().iter().map(|partition| partition.first_id).collect()
    }

    async fn check(&self, first_id: i64) -> Checked {
        self.0.check_partition(Partition { first_id, next_id: first_id + 10 }, WEEK).await.unwrap()
    }

    async fn empty(&self, first_id: i64, checked: &Checked) -> Option<bool> {
        let Checked::Finished { snapshot } = checked else { panic!("{first_id}: {checked:?}") };
        self.0.empty_partition(Partition { first_id, next_id: first_id + 10 }, snapshot).await.unwrap()
    }

    /// Everything that may go, at once.
    async fn round(&self, retention: Duration) {
        for partition in self.0.old_partitions(retention).await.unwrap() {
            if let Checked::Finished { snapshot } = self.0.check_partition(partition, retention).await.unwrap() {
                self.0.empty_partition(partition, &snapshot).await.unwrap();
            }
        }
        self.0.drop_partitions().await.unwrap();
        while self.0.trim_log(0, i64::MAX, retention.mul_f64(1.25)).await.unwrap() > Some(0) {}
    }
}

/// A handler that is past everything there is; all of it is done.
async fn all_done(session: &Session) {
    let done = "
        INSERT INTO outbox.handler (name, topics, topic_regex, kind, settings, first_id)
        VALUES ('all', '{#}', outbox.topic_regex('{#}'), 'rust', '{}', 0) ON CONFLICT DO NOTHING;
        INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at)
        SELECT id, 'all', 'done', 1, created_at, created_at FROM outbox.event ON CONFLICT DO NOTHING;
        INSERT INTO outbox.position (handler, position) VALUES ('all', pg_current_snapshot())";
    session.client.batch_execute(done).await.unwrap();
}

/// A log of partitions of ten ids: 35 events, done and a month old.
async fn month_old(database: &Database) -> Session {
    let session = database.session().await;
    small_partitions(&session, 12, 10).await;
    insert(&session, "a", 35).await;
    all_done(&session).await;
    days_pass(&session, 30).await;
    session
}

#[tokio::test]
async fn a_partition_goes_in_two_steps_and_the_one_in_use_never() {
    let database = Database::new().await;
    let (session, janitor) = (month_old(&database).await, Janitor::new(&database).await);
    assert_eq!(janitor.old().await, [0, 10, 20]);
    let checked = janitor.check(10).await;
    assert_eq!(janitor.empty(10, &checked).await, Some(true));
    assert_eq!(log(&session).await, (1..10).chain(20..36).collect::<Vec<_>>());
    assert_eq!(janitor.0.drop_partitions().await.unwrap(), Some(1));
    assert_eq!(partitions(&session).await, [0, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110]);
    // Eight are ahead; more are made above the highest, wherever one is missing.
    assert_eq!(text(&session, "SELECT outbox.add_partitions(9, '1 day', 10)").await, "1");
    assert_eq!(partitions(&session).await.last(), Some(&120));
    janitor.round(WEEK).await;
    assert_eq!(partitions(&session).await, [30, 40, 50, 60, 70, 80, 90, 100, 110, 120]);
    // By the row, the one in use too: it would last too long.
    assert!(log(&session).await.is_empty());
    insert(&session, "a", 1).await;
    assert_eq!(log(&session).await, [36]);
}

#[tokio::test]
async fn nothing_goes_that_is_young_pending_or_before_the_first_handler() {
    let database = Database::new().await;
    let (session, janitor) = (database.session().await, Janitor::new(&database).await);
    small_partitions(&session, 12, 10).await;
    for _ in 0..35 {
        session.client.batch_execute(OLD).await.unwrap();
    }
    janitor.round(WEEK).await;
    assert_eq!(log(&session).await.len(), 35, "the first handler begins at the beginning");
    all_done(&session).await;
    assert_eq!(janitor.old().await, [0, 10, 20]);

    // An outcome of yesterday, a delivery that a position passed by, and one that has not begun but has a row.
    session
        .client
        .batch_execute("UPDATE outbox.done SET finished_at = now() - interval '1 day' WHERE event_id = 15")
        .await
        .unwrap();
    session.client.batch_execute("DELETE FROM outbox.done WHERE event_id IN (5, 25)").await.unwrap();
    let open = "INSERT INTO outbox.open (event_id, handler, state, due_at, topic, payload, headers, priority, created_at)
                SELECT id, 'all', 'scheduled', now(), topic, payload, headers, priority, created_at FROM outbox.event WHERE id = 25";
    session.client.batch_execute(open).await.unwrap();
    assert_eq!(janitor.check(0).await, Checked::Pending);
    let day = Duration::from_hours(24);
    let young = janitor.check(10).await;
    assert!(matches!(young, Checked::Young { wait } if wait > 5 * day && wait <= 6 * day), "{young:?}");
    janitor.round(WEEK).await;
    assert_eq!(log(&session).await, [5, 15], "row by row all the others went");
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.done").await, "1");
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "1");
}

#[tokio::test]
async fn what_comes_between_the_look_and_the_lock_keeps_a_partition() {
    let database = Database::new().await;
    let (session, janitor) = (month_old(&database).await, Janitor::new(&database).await);
    let checked = janitor.check(0).await;
    let with_id = "INSERT INTO outbox.event (id, topic, payload, created_at) OVERRIDING SYSTEM VALUE VALUES (0, 'a', '{}', now() - interval '30 days')";
    session.client.batch_execute(with_id).await.unwrap();
    assert_eq!(janitor.empty(0, &checked).await, Some(false));
    assert_eq!(janitor.check(0).await, Checked::Pending);
    all_done(&session).await;
    assert_eq!(janitor.empty(0, &checked).await, Some(false), "it is done, but nobody has looked how old it is");
    let checked = janitor.check(0).await;
    assert_eq!(janitor.empty(0, &checked).await, Some(true));

    // A position in which its transaction is still listed is not past it, nor is one that ends before it.
    let checked = janitor.check(10).await;
    let restored = "INSERT INTO outbox.position (handler, position)
                    SELECT 'all', format(POSITION, xid, pg_snapshot_xmax(pg_current_snapshot()))::pg_snapshot FROM outbox.event WHERE id = 15";
    for position in ["'%1$s:%2$s:%1$s'", "'%1$s:%1$s:'"] {
        session.client.batch_execute(&restored.replace("POSITION", position)).await.unwrap();
        assert_eq!(janitor.empty(10, &checked).await, Some(false));
        assert!(janitor.old().await.is_empty());
        assert_eq!(janitor.0.trim_log(0, 100, WEEK).await.unwrap(), Some(0));
    }
    all_done(&session).await;
    assert_eq!(janitor.old().await, [10, 20]);
    let new = "INSERT INTO outbox.handler (name, topics, topic_regex, kind, settings, first_id)
               VALUES ('historian', '{#}', outbox.topic_regex('{#}'), 'rust', '{}', 0);
               INSERT INTO outbox.position (handler, position) VALUES ('historian', '3:3:')";
    session.client.batch_execute(new).await.unwrap();
    assert_eq!(janitor.empty(10, &checked).await, Some(false));
    assert!(janitor.old().await.is_empty());
    janitor.round(WEEK).await;
    assert_eq!(log(&session).await.len(), 26);

    // A handler whose registration is not committed yet would read what goes by the row.
    session.client.batch_execute("DELETE FROM outbox.handler WHERE name = 'historian'").await.unwrap();
    session.client.batch_execute("BEGIN").await.unwrap();
    session.client.batch_execute(new).await.unwrap();
    assert_eq!(janitor.0.trim_log(0, 100, WEEK).await.unwrap(), None);
    session.client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(janitor.0.trim_log(0, 100, WEEK).await.unwrap(), Some(0));
}

/// A transaction that has id 1, and is open; everything else is done and old.
async fn overtaken(database: &Database, begin: &str, receipts: &Receipts) -> (Session, Session) {
    let (late, session) = (database.session().await, database.session().await);
    late.client.batch_execute(begin).await.unwrap();
    late.client.batch_execute(OLD).await.unwrap();
    let others = insert(&session, "a", 34).await;
    receipts.reached(34).await;
    until("the others are done", async || text(&session, "SELECT count(*) FROM outbox.done").await == "34").await;
    assert_eq!(others, receipts.events());
    let past =
        "SELECT bool_and(pg_snapshot_xmax(position) > (SELECT max(xid) FROM outbox.event)) FROM outbox.newest_position";
    until("its position is stored", async || text(&session, past).await == "true").await;
    days_pass(&session, 30).await;
    (late, session)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_holds_an_id_of_an_old_partition_keeps_it_and_is_delivered() {
    let (database, receipts) = (Database::new().await, Receipts::default());
    // Two-phase commit is found by the poll.
    let poll_interval = Some(Duration::from_millis(50));
    let config = Config { daemon: DaemonConfig { poll_interval, ..DaemonConfig::default() }, ..Config::default() };
    small_partitions(&database.session().await, 12, 10).await;
    let running = Running::start(daemon(&database).config(config).handler("all", ["#"], receipts.handler())).await;
    let (late, session) = overtaken(&database, "BEGIN; SET LOCAL outbox.bell = off", &receipts).await;
    let janitor = Janitor::new(&database).await;
    let name = database.name();
    for end in [format!("PREPARE TRANSACTION '{name}'"), format!("COMMIT PREPARED '{name}'")] {
        // In progress, then prepared: nobody can see it, and its lock stands.
        let checked = janitor.check(0).await;
        assert_eq!(janitor.empty(0, &checked).await, None);
        janitor.round(WEEK).await;
        assert!(partitions(&session).await.contains(&0));
        assert_eq!(text(&session, "SELECT count(*) FROM outbox.event").await, "0", "row by row the others went");
        late.client.batch_execute(&end).await.unwrap();
    }
    receipts.reached(35).await;
    until("it is done", async || text(&session, "SELECT count(*) FROM outbox.done").await == "1").await;
    assert_eq!((receipts.events().first(), receipts.repeated()), (Some(&1), 0));
    running.stop().await;
    days_pass(&session, 30).await;
    // A vacuum may hold the partition for a moment: then it goes in the next round.
    until("the partition has gone", async || {
        janitor.round(WEEK).await;
        log(&session).await.is_empty() && !partitions(&session).await.contains(&0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_kept_until_its_partition_was_gone_is_delivered_from_the_default_one() {
    let (database, receipts) = (Database::new().await, Receipts::default());
    let (session, janitor) = (database.session().await, Janitor::new(&database).await);
    small_partitions(&session, 12, 10).await;
    let running = Running::start(daemon(&database).handler("all", ["#"], receipts.handler())).await;
    // A sequence that caches gives each session ids of its own.
    session.client.batch_execute("ALTER TABLE outbox.event ALTER COLUMN id SET CACHE 5").await.unwrap();
    let late = database.session().await;
    let first = insert(&late, "a", 1).await;
    insert(&session, "a", 34).await;
    receipts.reached(35).await;
    until("they are done", async || text(&session, "SELECT count(*) FROM outbox.done").await == "35").await;
    until("so has its position", async || {
        days_pass(&session, 30).await;
        janitor.round(WEEK).await;
        !partitions(&session).await.contains(&0)
    })
    .await;

    let kept = insert(&late, "a", 3).await;
    assert!(kept.iter().all(|id| *id < 10) && kept.first() > first.first());
    let table = format!("SELECT DISTINCT tableoid::regclass FROM outbox.event WHERE id <= {}", kept.last().unwrap());
    assert_eq!(text(&session, &table).await, "outbox.event_default");
    receipts.reached(38).await;
    until("they are done", async || {
        text(&session, "SELECT count(*) FROM outbox.done WHERE event_id < 10").await == "3"
    })
    .await;
    assert_eq!(receipts.repeated(), 0);
    running.stop().await;
    days_pass(&session, 30).await;
    janitor.round(WEEK).await;
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event_default").await, "0");
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.done_default").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_reads_is_not_disturbed_and_producers_go_on() {
    let database = Database::new().await;
    let (session, janitor) = (month_old(&database).await, Janitor::new(&database).await);
    let (reader, producer) = (database.session().await, database.session().await);
    reader.client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(text(&reader, "SELECT count(*) FROM outbox.event JOIN outbox.done ON event_id = id").await, "35");
    let (checked, inserted) = (janitor.check(0).await, AtomicBool::new(false));
    let janitor_tries = async {
        let mut tries = 0;
        while !inserted.load(Ordering::Relaxed) || tries < 5 {
            assert_eq!(janitor.empty(0, &checked).await, None);
            assert_eq!(janitor.0.drop_partitions().await.unwrap(), Some(0));
            tries += 1;
        }
    };
    let produce = async {
        producer.client.batch_execute("SET lock_timeout = '10s'").await.unwrap();
        for _ in 0..30 {
            insert(&producer, "a", 1).await;
        }
        inserted.store(true, Ordering::Relaxed);
    };
    tokio::join!(janitor_tries, produce);
    assert_eq!(text(&reader, "SELECT count(*) FROM outbox.event WHERE id < 10").await, "9");
    reader.client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(janitor.empty(0, &checked).await, Some(true));

    // A partition that is empty is dropped when nobody uses the log; a producer that has not committed does.
    producer.client.batch_execute("BEGIN").await.unwrap();
    insert(&producer, "a", 1).await;
    assert_eq!(janitor.empty(10, &janitor.check(10).await).await, Some(true), "no producer uses that one");
    assert_eq!(janitor.0.drop_partitions().await.unwrap(), None);
    insert(&session, "a", 1).await;
    producer.client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(janitor.0.drop_partitions().await.unwrap(), Some(2));
}

/// Producers and a daemon go on while everything goes as soon as it is done; `end` is how the daemon ends now and then.
async fn all_the_while(prepare: bool, end: impl AsyncFn(Running)) -> usize {
    let database = Database::new().await;
    let session = database.session().await;
    session.client.batch_execute("ALTER TABLE outbox.event ALTER COLUMN id SET CACHE 20").await.unwrap();
    small_partitions(&session, 60, 200).await;
    let (ledger, receipts, janitor) = (Ledger::default(), Receipts::default(), Janitor::new(&database).await);
    let poll_interval = Some(Duration::from_millis(100));
    let config = Config { daemon: DaemonConfig { poll_interval, ..DaemonConfig::default() }, ..Config::default() };
    let builder = || daemon(&database).config(config.clone()).handler("all", ["#"], receipts.handler());
    let shape = Shape { rows_max: 20, pause_max: Duration::from_millis(20), prepare };
    let mut producers = Producers::connect(&database, 12, shape, &ledger).await;
    let (events, over) = (scaled(6000), AtomicBool::new(false));
    let work = async {
        let restarts = async {
            for part in 1..=4 {
                let running = Running::start(builder()).await;
                until("some more events are received", async || receipts.len() >= events * part / 5).await;
                end(running).await;
            }
        };
        tokio::join!(producers.produce(events), restarts);
        let running = Running::start(builder()).await;
        receipts.complete(&ledger, None).await;
        let wrong = |o: &Observation| {
            matches!(o, Observation::Unwritable { .. } | Observation::Refused { .. } | Observation::SweepFound { .. })
        };
        assert_eq!(running.count(wrong), 0);
        until_within(60, "all of it has gone", async || log(&session).await.is_empty()).await;
        until("and every outcome", async || text(&session, "SELECT count(*) FROM outbox.done").await == "0").await;
        until("and partitions", async || partitions(&session).await.first() > Some(&0)).await;
        over.store(true, Ordering::Relaxed);
        running.stop().await;
    };
    let retire = async {
        while !over.load(Ordering::Relaxed) {
            janitor.round(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(work, retire);
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
    receipts.repeated()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_everything_goes_at_once_producers_never_fail_and_every_event_runs_once() {
    assert_eq!(all_the_while(true, Running::stop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_loses_nothing_while_everything_goes_at_once() {
    let repeated = all_the_while(false, Running::kill).await;
    println!("{repeated} deliveries ran again after four kills");
}

#[tokio::test]
async fn what_lies_in_the_default_partition_goes_in_batches_with_its_outcomes() {
    let database = Database::new().await;
    let (session, janitor) = (database.session().await, Janitor::new(&database).await);
    text(&session, "SELECT setval(pg_get_serial_sequence('outbox.event', 'id'), 50000000)").await;
    let events: BTreeSet<i64> = insert(&session, "a", 2500).await;
    all_done(&session).await;
    days_pass(&session, 30).await;
    let first = *events.first().unwrap();
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event_default").await, "2500");
    for left in [2000, 1500, 1000, 500, 0] {
        assert!(janitor.0.trim_log(first, first + 10_000, WEEK).await.unwrap().unwrap() > 0);
        for table in ["event", "done"] {
            assert_eq!(text(&session, &format!("SELECT count(*) FROM outbox.{table}")).await, left.to_string());
        }
    }
    assert_eq!(janitor.0.trim_log(first, first + 10_000, WEEK).await.unwrap(), Some(0));
}
