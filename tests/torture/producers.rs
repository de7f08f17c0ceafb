//! The apps: transactions of every shape, on connections that break, each noted before and after.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::SinkExt as _;
use outboxd::postgres::Session;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::ledger::{Fate, Ledger, Number, payload};
use crate::server::Server;
use crate::sink::POISON;

/// What the apps do at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Idle,
    Load,
}

/// Inserts `(topic, payload, key, delay)`.
const INSERT: &str = "
INSERT INTO outbox.event (topic, payload, key, due_at)
SELECT t.topic, t.payload::jsonb, t.key, clock_timestamp() + t.delay * interval '1 second'
FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[]) AS t (topic, payload, key, delay)";

pub(crate) struct Producer {
    server: Server,
    ledger: Ledger,
    session: Option<Session>,
    rng: Rng,
    next: Number,
    /// Events a second, of this producer.
    rate: f64,
    /// The longest that a transaction is held open.
    held_max: Duration,
}

/// What a transaction is like.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Single,
    Rows(usize),
    Copy(usize),
    Rollback,
    Savepoint,
    Strict,
    Held,
    TwoPhases,
}

struct New {
    number: Number,
    topic: &'static str,
    key: Option<String>,
    delay: Option<f64>,
}

/// What became of a transaction that did not end as it should.
enum Failed {
    /// Nothing of it can have been committed.
    Undone,
    /// The commit was sent, and no answer came.
    Unknown,
}

impl Failed {
    /// An error before the commit was sent.
    fn before(_: tokio_postgres::Error) -> Self {
        Self::Undone
    }

    /// An error of the commit itself, or of a statement that is a transaction of its own.
    fn of_commit(error: &tokio_postgres::Error) -> Self {
        // PostgreSQL says 57P01 and 57P02 while it ends a session, possibly after the commit.
        let ended = |code: &str| code.starts_with("57P") || code.starts_with("08");
        if error.code().is_some_and(|code| !ended(code.code())) { Self::Undone } else { Self::Unknown }
    }
}

type Ended = Result<(), Failed>;

impl Producer {
    pub(crate) fn new(index: u64, seed: u64, rate: f64, held_max: Duration, server: &Server, ledger: &Ledger) -> Self {
        Self {
            server: server.clone(),
            ledger: ledger.clone(),
            session: None,
            rng: Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(index)),
            next: index << 40,
            rate,
            held_max,
        }
    }

    /// Produces while it is told to.
    pub(crate) async fn run(mut self, mut mode: watch::Receiver<Mode>) {
        loop {
            let now = *mode.borrow_and_update();
            match now {
                Mode::Idle => mode.changed().await.unwrap(),
                Mode::Load => {
                    let events = self.transaction().await;
                    let pause = f64::from(u32::try_from(events).unwrap()) / self.rate;
                    let _ = tokio::time::timeout(
                        Duration::from_secs_f64(2.0 * pause * self.rng.f64()),
                        mode.wait_for(|mode| *mode != Mode::Load),
                    )
                    .await;
                }
            }
        }
    }

    /// Some events for the handlers that answer at once: a few in a row, so that the daemon silences the bell, and one in a
    /// transaction that may be open while the daemon falls asleep. Returns those that are committed.
    pub(crate) async fn probe(&mut self) -> Vec<Number> {
        let mut committed = Vec::new();
        for left in (0..self.rng.u8(1..8)).rev() {
            let event = self.new_event("probe.one");
            self.intend(std::slice::from_ref(&event)).await;
            let number = event.number;
            let pauses = [self.rng.u64(..40), self.rng.u64(..70) * self.rng.u64(..2)].map(Duration::from_millis);
            let ended = if left > 0 { self.alone(&[event]).await } else { self.open_for(event, pauses).await };
            committed.extend(ended.is_ok().then_some(number));
            self.note(&[number], ended);
        }
        committed
    }

    async fn open_for(&mut self, event: New, pauses: [Duration; 2]) -> Ended {
        let client = &self.connected().await.client;
        client.batch_execute("BEGIN").await.map_err(Failed::before)?;
        sleep(pauses[0]).await;
        insert(client, &[event]).await.map_err(Failed::before)?;
        sleep(pauses[1]).await;
        client.batch_execute("COMMIT").await.map_err(|error| Failed::of_commit(&error))
    }

    /// One transaction; how many events it was to insert.
    async fn transaction(&mut self) -> usize {
        let shape = self.shape();
        let count = match shape {
            Shape::Rows(rows) | Shape::Copy(rows) => rows,
            Shape::Savepoint => 4,
            _ => 1,
        };
        // In a large transaction a few topics are enough for all handlers.
        let events: Vec<New> = (0..count)
            .map(|_| {
                let topic = self.topic();
                self.new_event(topic)
            })
            .collect();
        let numbers: Vec<Number> = events.iter().map(|event| event.number).collect();
        self.intend(&events).await;
        match shape {
            Shape::Single | Shape::Rows(_) => {
                let ended = self.alone(&events).await;
                self.note(&numbers, ended);
            }
            Shape::Copy(_) => {
                let ended = self.copy(&events).await;
                self.note(&numbers, ended);
            }
            Shape::Rollback => {
                let _ = self.roll_back(&events).await;
                self.note(&numbers, Err(Failed::Undone));
            }
            Shape::Savepoint => {
                let ended = self.savepoint(&events[..2], &events[2..]).await;
                self.note(&numbers[..2], ended);
                self.note(&numbers[2..], Err(Failed::Undone));
            }
            Shape::Strict => {
                let ended = self.strict(&events).await;
                self.note(&numbers, ended);
            }
            Shape::Held => {
                let ended = self.held(&events).await;
                self.note(&numbers, ended);
            }
            Shape::TwoPhases => {
                let ended = self.two_phases(&events).await;
                self.note(&numbers, ended);
            }
        }
        count
    }

    fn shape(&mut self) -> Shape {
        match self.rng.u32(..1000) {
            ..500 => Shape::Single,
            500..690 => Shape::Rows(self.rng.usize(2..20)),
            690..700 => Shape::Rows(self.rng.usize(100..=500)),
            700..705 => Shape::Copy(self.rng.usize(500..1500)),
            705..805 => Shape::Rollback,
            805..855 => Shape::Savepoint,
            855..955 => Shape::Strict,
            955..985 => Shape::Held,
            _ => Shape::TwoPhases,
        }
    }

    fn topic(&mut self) -> &'static str {
        match self.rng.u32(..1000) {
            ..3 => POISON,
            3..30 => "picky.fine",
            30..40 => "program.run",
            40..200 => "load.narrow",
            _ => "load.common",
        }
    }

    fn new_event(&mut self, topic: &'static str) -> New {
        self.next += 1;
        // A tenth of the keys gets a third of the events.
        let key = match self.rng.u8(..3) {
            0 => None,
            1 => Some(format!("key-{}", self.rng.u16(..100))),
            _ => Some(format!("key-{}", self.rng.u16(..1000))),
        };
        let delayed = topic != "probe.one" && self.rng.u8(..100) < 3;
        let delay = delayed.then(|| self.rng.f64() * 3.0);
        New { number: self.next, topic, key, delay }
    }

    async fn intend(&self, events: &[New]) {
        let intent = |event: &New| (event.number, event.topic, event.key.clone(), event.delay.is_some());
        let intents: Vec<_> = events.iter().map(intent).collect();
        self.ledger.intend(&intents).await;
    }

    /// Notes what became of these events. A session with which something is wrong is not used again.
    fn note(&mut self, numbers: &[Number], ended: Ended) {
        let fate = match ended {
            Ok(()) => Fate::Committed,
            Err(failed) => {
                self.session = None;
                match failed {
                    Failed::Undone => Fate::Undone,
                    Failed::Unknown => Fate::Unknown,
                }
            }
        };
        self.ledger.fate(numbers.iter().copied(), fate);
    }

    async fn connected(&mut self) -> &Session {
        if self.session.as_ref().is_none_or(|session| session.client.is_closed()) {
            self.session = Some(self.server.session().await);
        }
        self.session.as_ref().unwrap()
    }

    async fn alone(&mut self, events: &[New]) -> Ended {
        insert(&self.connected().await.client, events).await.map_err(|error| Failed::of_commit(&error))
    }

    async fn copy(&mut self, events: &[New]) -> Ended {
        let escaped = |text: String| text.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t");
        let line = |event: &New| {
            let key = event.key.clone().unwrap_or("\\N".to_owned());
            format!("{}\t{}\t{key}\n", event.topic, escaped(payload(event.number).to_string()))
        };
        let text: String = events.iter().map(line).collect();
        let client = &self.connected().await.client;
        let copy = "COPY outbox.event (topic, payload, key) FROM STDIN";
        let sink = client.copy_in(copy).await.map_err(Failed::before)?;
        tokio::pin!(sink);
        sink.send(Bytes::from(text)).await.map_err(|error| Failed::of_commit(&error))?;
        sink.finish().await.map(drop).map_err(|error| Failed::of_commit(&error))
    }

    async fn roll_back(&mut self, events: &[New]) -> Ended {
        let client = &self.connected().await.client;
        client.batch_execute("BEGIN").await.map_err(Failed::before)?;
        insert(client, events).await.map_err(Failed::before)?;
        client.batch_execute("ROLLBACK").await.map_err(Failed::before)
    }

    async fn savepoint(&mut self, kept: &[New], undone: &[New]) -> Ended {
        let client = &self.connected().await.client;
        client.batch_execute("BEGIN; SAVEPOINT here").await.map_err(Failed::before)?;
        insert(client, undone).await.map_err(Failed::before)?;
        client.batch_execute("ROLLBACK TO here").await.map_err(Failed::before)?;
        insert(client, kept).await.map_err(Failed::before)?;
        client.batch_execute("COMMIT").await.map_err(|error| Failed::of_commit(&error))
    }

    /// Above READ COMMITTED, with a row that others want: tried again until it can be serialised, or never.
    async fn strict(&mut self, events: &[New]) -> Ended {
        let level = if self.rng.bool() { "REPEATABLE READ" } else { "SERIALIZABLE" };
        let account = self.rng.u8(1..=12);
        for _ in 0..10 {
            let client = &self.connected().await.client;
            let tried = async {
                let update = format!("UPDATE torture.account SET balance = balance + 1 WHERE id = {account}");
                let begin = format!("BEGIN ISOLATION LEVEL {level}; {update}");
                client.batch_execute(&begin).await?;
                insert(client, events).await
            };
            let (retry, ended) = match tried.await {
                Ok(()) => match client.batch_execute("COMMIT").await {
                    Ok(()) => return Ok(()),
                    Err(error) => (cannot_serialise(&error), Failed::of_commit(&error)),
                },
                Err(error) => (cannot_serialise(&error), Failed::Undone),
            };
            if !retry {
                return Err(ended);
            }
            let _ = client.batch_execute("ROLLBACK").await;
        }
        Err(Failed::Undone)
    }

    async fn held(&mut self, events: &[New]) -> Ended {
        let pause = self.held_max.mul_f64(self.rng.f64().powi(2));
        let client = &self.connected().await.client;
        client.batch_execute("BEGIN").await.map_err(Failed::before)?;
        insert(client, events).await.map_err(Failed::before)?;
        sleep(pause).await;
        client.batch_execute("COMMIT").await.map_err(|error| Failed::of_commit(&error))
    }

    async fn two_phases(&mut self, events: &[New]) -> Ended {
        let pause = Duration::from_millis(self.rng.u64(..300));
        let name = format!("torture {}", events[0].number);
        let client = &self.connected().await.client;
        client.batch_execute("BEGIN; SET LOCAL outbox.bell = off").await.map_err(Failed::before)?;
        insert(client, events).await.map_err(Failed::before)?;
        client
            .batch_execute(&format!("PREPARE TRANSACTION '{name}'"))
            .await
            .map_err(|error| Failed::of_commit(&error))?;
        sleep(pause).await;
        // From here on it will be committed, at the latest by `resolve`, whatever becomes of this session.
        client.batch_execute(&format!("COMMIT PREPARED '{name}'")).await.map_err(|_| Failed::Unknown)
    }
}

/// Commits the prepared transactions that a fault has left.
pub(crate) async fn resolve(server: &Server) {
    let session = server.session().await;
    let Ok(rows) = session.client.query("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'torture %'", &[]).await
    else {
        return;
    };
    for row in rows {
        let name: String = row.get(0);
        let _ = session.client.batch_execute(&format!("COMMIT PREPARED '{name}'")).await;
    }
}

fn cannot_serialise(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| matches!(code.code(), "40001" | "40P01"))
}

async fn insert(client: &tokio_postgres::Client, events: &[New]) -> Result<(), tokio_postgres::Error> {
    let topics: Vec<&str> = events.iter().map(|event| event.topic).collect();
    let payloads: Vec<String> = events.iter().map(|event| payload(event.number).to_string()).collect();
    let keys: Vec<Option<&str>> = events.iter().map(|event| event.key.as_deref()).collect();
    let delays: Vec<Option<f64>> = events.iter().map(|event| event.delay).collect();
    client.execute(INSERT, &[&topics, &payloads, &keys, &delays]).await.map(drop)
}
