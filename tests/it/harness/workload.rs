//! What the daemon is tested with: producers that insert, pause, roll back and prepare as applications do, a ledger of
//! what they committed, and receipts of what the handlers were given.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use outboxd::postgres::Session;
use outboxd::{Attempt, Event, EventId};
use tokio::sync::watch;
use tokio_postgres::error::SqlState;

use super::{Database, until};

/// Most events have this topic.
pub(crate) const COMMON: &str = "load.common";
/// Some have this one, for a handler that does not want everything.
pub(crate) const NARROW: &str = "load.narrow";

/// `OUTBOXD_TEST_SCALE` times as many; without it, as many as fit into a run of all tests.
pub(crate) fn scaled(count: usize) -> usize {
    let scale = std::env::var("OUTBOXD_TEST_SCALE").map_or(1, |scale| scale.parse().unwrap());
    count * scale
}

/// A producer's own pause, up to so long: part of the workload, not a wait for anything.
async fn pause(rng: &mut Rng, max: Duration) {
    let _ = tokio::time::timeout(max.mul_f64(rng.f64()), pending::<()>()).await;
}

/// What was committed, when, and what was rolled back.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    committed: BTreeMap<i64, (&'static str, Instant)>,
    undone: BTreeSet<i64>,
}

impl Ledger {
    /// How many events were committed so far.
    pub(crate) fn committed(&self) -> usize {
        self.0.lock().unwrap().committed.len()
    }

    /// The committed events of this topic, or all.
    pub(crate) fn events(&self, topic: Option<&str>) -> BTreeSet<i64> {
        let entries = self.0.lock().unwrap();
        let wanted = entries.committed.iter().filter(|(_, (of, _))| topic.is_none_or(|topic| topic == *of));
        wanted.map(|(&id, _)| id).collect()
    }

    pub(crate) fn note_committed(&self, topic: &'static str, ids: impl IntoIterator<Item = i64>) {
        let at = Instant::now();
        self.0.lock().unwrap().committed.extend(ids.into_iter().map(|id| (id, (topic, at))));
    }

    fn note_undone(&self, ids: impl IntoIterator<Item = i64>) {
        self.0.lock().unwrap().undone.extend(ids);
    }
}

/// What one handler was given, by event.
#[derive(Clone, Default)]
pub(crate) struct Receipts(Arc<Mutex<HashMap<i64, Vec<Instant>>>>);

impl Receipts {
    /// A handler that takes a receipt and succeeds.
    pub(crate) fn handler(&self) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + 'static + use<> {
        let receipts = self.clone();
        move |event| {
            receipts.take(event.id);
            std::future::ready(())
        }
    }

    /// A handler that takes a receipt and then up to so long.
    pub(crate) fn slow_handler(
        &self,
        max: Duration,
    ) -> impl Fn(Event) -> BoxFuture<'static, ()> + Send + Sync + 'static + use<> {
        let receipts = self.clone();
        move |event| {
            receipts.take(event.id);
            async move { pause(&mut Rng::new(), max).await }.boxed()
        }
    }

    /// A handler that takes a receipt once the gate is open.
    pub(crate) fn handler_behind(
        &self,
        gate: &Gate,
    ) -> impl Fn(Attempt) -> BoxFuture<'static, ()> + Send + Sync + 'static + use<> {
        let (receipts, gate) = (self.clone(), gate.clone());
        move |attempt| {
            let (receipts, gate) = (receipts.clone(), gate.clone());
            async move {
                gate.passed().await;
                receipts.take(attempt.event.id);
            }
            .boxed()
        }
    }

    pub(crate) fn take(&self, event: EventId) {
        self.0.lock().unwrap().entry(event.0).or_default().push(Instant::now());
    }

    /// How many different events.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(crate) fn events(&self) -> BTreeSet<i64> {
        self.0.lock().unwrap().keys().copied().collect()
    }

    /// Receipts beyond the first of each event.
    pub(crate) fn repeated(&self) -> usize {
        self.0.lock().unwrap().values().map(|times| times.len() - 1).sum()
    }

    /// Waits until so many different events have come, for as long as they keep coming.
    pub(crate) async fn reached(&self, events: usize) {
        let mut before = self.len();
        while before < events {
            until(&format!("more than {before} of {events} events are received"), async || self.len() > before).await;
            before = self.len();
        }
    }

    /// Waits until everything committed has come, and nothing else has.
    pub(crate) async fn complete(&self, ledger: &Ledger, topic: Option<&str>) {
        let expected = ledger.events(topic);
        self.reached(expected.len()).await;
        let received = self.events();
        let unwanted: Vec<_> = received.difference(&expected).collect();
        let missing: Vec<_> = expected.difference(&received).collect();
        assert!(
            unwanted.is_empty() && missing.is_empty(),
            "received but not committed {unwanted:?}; missing {missing:?}"
        );
        assert!(received.is_disjoint(&ledger.0.lock().unwrap().undone), "a rolled-back event was received");
    }

    /// The longest from a commit to its first receipt.
    pub(crate) fn worst_wait(&self, ledger: &Ledger) -> Duration {
        let (receipts, entries) = (self.0.lock().unwrap(), ledger.0.lock().unwrap());
        let wait = |(id, times): (&i64, &Vec<Instant>)| {
            let (_, committed) = entries.committed.get(id)?;
            Some(times[0].saturating_duration_since(*committed))
        };
        receipts.iter().filter_map(wait).max().unwrap_or_default()
    }
}

/// Holds handlers up until it is opened.
#[derive(Clone)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn passed(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

/// What transactions look like.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rows_max: u32,
    /// Between statements and before the end.
    pub(crate) pause_max: Duration,
    /// Whether some switch the bell off and are prepared before they are committed. Needs the poll.
    pub(crate) prepare: bool,
}

/// Producers on connections of their own.
pub(crate) struct Producers(Vec<Producer>);

struct Producer {
    session: Session,
    rng: Rng,
    shape: Shape,
    ledger: Ledger,
    /// Of the present transaction.
    kept: Vec<(i64, &'static str)>,
}

impl Producers {
    pub(crate) async fn connect(database: &Database, count: u64, shape: Shape, ledger: &Ledger) -> Self {
        // Contended now and then, so that transactions above READ COMMITTED must be tried again.
        let account = "CREATE TABLE public.account AS SELECT n AS id, 0 AS balance FROM generate_series(1, 12) n";
        database.session().await.client.batch_execute(account).await.unwrap();
        let seed = fastrand::u64(..);
        println!("{}: the producers' seed is {seed}", database.name());
        let producer = async |n| Producer {
            session: database.session().await,
            rng: Rng::with_seed(seed.wrapping_add(n)),
            shape,
            ledger: ledger.clone(),
            kept: Vec::new(),
        };
        Self(join_all((0..count).map(producer)).await)
    }

    /// Runs transactions until so many more events are committed.
    pub(crate) async fn produce(&mut self, events: usize) {
        let Some(first) = self.0.first() else { return };
        let enough = first.ledger.committed() + events;
        join_all(self.0.iter_mut().map(|producer| producer.produce(enough))).await;
    }
}

impl Producer {
    async fn produce(&mut self, enough: usize) {
        while self.ledger.committed() < enough {
            self.pause().await;
            self.transaction().await;
        }
    }

    async fn pause(&mut self) {
        pause(&mut self.rng, self.shape.pause_max).await;
    }

    async fn execute(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.session.client.batch_execute(sql).await
    }

    /// One transaction, tried again when PostgreSQL could not serialise it.
    async fn transaction(&mut self) {
        while let Err(error) = self.attempt().await {
            assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{error:?}");
            self.execute("ROLLBACK").await.unwrap();
            self.undo_to(0);
        }
    }

    /// What was inserted after the first `kept` rows of this transaction does not count.
    fn undo_to(&mut self, kept: usize) {
        self.ledger.note_undone(self.kept.drain(kept..).map(|(id, _)| id));
    }

    async fn attempt(&mut self) -> Result<(), tokio_postgres::Error> {
        let levels = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
        let level = levels[self.rng.usize(..levels.len())];
        let prepare = self.shape.prepare && self.rng.u8(..100) < 5;
        self.execute(&format!("BEGIN ISOLATION LEVEL {level}")).await?;
        if prepare {
            self.execute("SET LOCAL outbox.bell = off").await?;
        }
        // Takes the snapshot of the stricter levels, and sometimes a lock that somebody else wants.
        let account = self.rng.u8(1..=12);
        if self.rng.u8(..100) < 10 {
            self.execute(&format!("UPDATE account SET balance = balance + 1 WHERE id = {account}")).await?;
        } else {
            self.execute(&format!("SELECT balance FROM account WHERE id = {account}")).await?;
        }
        self.pause().await;
        self.insert().await?;
        if self.rng.u8(..100) < 30 {
            self.savepoint().await?;
        }
        self.pause().await;
        match self.rng.u8(..100) {
            ..15 => {
                self.execute("ROLLBACK").await?;
                self.undo_to(0);
            }
            _ if prepare => self.commit_in_two_phases().await?,
            _ => self.execute("COMMIT").await?,
        }
        for (id, topic) in self.kept.drain(..) {
            self.ledger.note_committed(topic, [id]);
        }
        Ok(())
    }

    /// Inserts up to `rows_max` events in one statement.
    async fn insert(&mut self) -> Result<(), tokio_postgres::Error> {
        let topic = if self.rng.u8(..100) < 25 { NARROW } else { COMMON };
        let rows = self.rng.u32(1..=self.shape.rows_max).cast_signed();
        let insert = "INSERT INTO outbox.event (topic, payload)
                      SELECT $1::text, jsonb_build_object('n', n) FROM generate_series(1, $2::integer) n RETURNING id";
        let rows = self.session.client.query(insert, &[&topic, &rows]).await?;
        self.kept.extend(rows.iter().map(|row| (row.get(0), topic)));
        Ok(())
    }

    /// Inserts in a subtransaction, which is rolled back half of the time.
    async fn savepoint(&mut self) -> Result<(), tokio_postgres::Error> {
        let before = self.kept.len();
        self.execute("SAVEPOINT here").await?;
        self.insert().await?;
        self.pause().await;
        if self.rng.bool() {
            self.execute("ROLLBACK TO here").await?;
            self.undo_to(before);
            // The rows and their bell are gone; what comes now rings for itself.
            if self.rng.bool() {
                self.insert().await?;
            }
        } else {
            self.execute("RELEASE here").await?;
        }
        Ok(())
    }

    async fn commit_in_two_phases(&mut self) -> Result<(), tokio_postgres::Error> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        self.execute(&format!("PREPARE TRANSACTION '{name}'")).await?;
        self.pause().await;
        self.execute(&format!("COMMIT PREPARED '{name}'")).await
    }
}

/// Asserts that a handler's deliveries of the log are done exactly for these events, and that nothing is left open.
pub(crate) async fn assert_done(database: &Database, handler: &str, expected: &BTreeSet<i64>) {
    let session = database.session().await;
    let done = async || {
        let sql = "SELECT event_id FROM outbox.done WHERE handler = $1 AND outcome = 'done'";
        let rows = session.client.query(sql, &[&handler]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<BTreeSet<i64>>()
    };
    // A receipt is taken before the outcome is written.
    until(&format!("{} deliveries of {handler} are done", expected.len()), async || {
        done().await.len() >= expected.len()
    })
    .await;
    assert!(done().await == *expected, "{handler} is done with other events than were committed");
    let open = session.client.query("SELECT event_id FROM outbox.open WHERE handler = $1", &[&handler]).await.unwrap();
    assert!(open.is_empty(), "{} deliveries of {handler} are left open", open.len());
}

/// Inserts so many events of this topic in one transaction; returns their ids.
pub(crate) async fn insert(session: &Session, topic: &str, count: usize) -> BTreeSet<i64> {
    let sql = "INSERT INTO outbox.event (topic, payload) SELECT $1::text, '{}' FROM generate_series(1, $2::bigint) RETURNING id";
    let rows = session.client.query(sql, &[&topic, &i64::try_from(count).unwrap()]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}
