//! Settling: what ended is written back in batches, on the session that leads, one batch at a time.
//!
//! The session that holds the leader lock is the fence: once PostgreSQL has dropped it, nothing of a deposed daemon is
//! written any more. This task is the only one that uses it, so a batch and a claim never share a transaction.
//!
//! A batch is whatever has gathered while the one before it was being committed, and for a few milliseconds more if it
//! is small: one delivery alone is written at once, a stream in batches, a flood in large ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::beat::Beats;
use super::write::{Ended, Fate, Ticket, Write};
use crate::observe::{Observation, Observer};
use crate::outcome::{Failure, Settlement, TEXT_BYTES_MAX, excerpt};
use crate::snapshot::Snapshot;
use crate::store::registry::{Beginning, Checkpoint, Registration};
use crate::store::settle::{Attempts, Claim, Finished, Opened, Pairs};
use crate::store::{Error, Store};

/// Deliveries written in one transaction at most. 500 to 2,000 rows measured the same speed.
const BATCH_MAX: usize = 1000;

/// Between two commits at least, while batches are small. Every commit waits for the disk, and so do the producers, who
/// share it: 100 of ours a second cost them less than one for every read of the log.
const GATHER: Duration = Duration::from_millis(10);

/// Before a statement that was refused for something that passes is tried again; doubled from the first to the second. A
/// standby takes a leader that says nothing for longer than that for a frozen one.
const AGAIN_MIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// Tries until PostgreSQL does it, or refuses for good. Nothing is given up meanwhile: what has run is not run again
/// because a disk was full. What waits is bounded by the lanes.
macro_rules! patiently {
    ($observer:expr, $ask:expr) => {{
        let mut pause = AGAIN_MIN;
        loop {
            match $ask.await {
                Err(error) if error.is_passing() => pause = wait($observer, &error, pause).await,
                done => break done,
            }
        }
    }};
}

/// A request to the leader's session. They are served in order.
#[derive(Debug)]
pub enum Request {
    Write(Write),
    Claim(Vec<(Arc<str>, usize)>),
    Checkpoint(Vec<Checkpoint>),
    /// What running attempts said, and questions about silent ones.
    Beats(Beats),
    /// Rings the bell, to hear whether the listener hears it.
    Ring,
    /// The breaker of a handler's target has opened, because of this error, or closed.
    Breaker {
        handler: Arc<str>,
        opened: Option<String>,
    },
    /// A handler's target is gone.
    Pause {
        handler: Arc<str>,
        reason: String,
    },
    /// New handlers begin behind the snapshot.
    Register(Vec<Registration>, Snapshot),
}

/// An answer from the leader's session.
#[derive(Debug)]
pub enum Reply {
    Written(Vec<(Ticket, Fate)>),
    Claimed(Claim),
    Registered(Vec<Beginning>),
    Rung,
}

/// Serves requests until they end or the session breaks.
///
/// The channels are unbounded because the lanes bound what can be in them.
pub async fn run(
    store: &Store,
    mut requests: UnboundedReceiver<Request>,
    replies: UnboundedSender<Reply>,
    observer: Observer,
) -> Result<(), Error> {
    let mut waiting = Vec::with_capacity(BATCH_MAX);
    let mut gather_until = Instant::now();
    while requests.recv_many(&mut waiting, BATCH_MAX).await > 0 {
        gather(&mut requests, &mut waiting, gather_until).await;
        let mut writes = Vec::new();
        let mut beats = Beats::default();
        for request in waiting.drain(..) {
            let request = match request {
                Request::Write(write) => {
                    writes.push(write);
                    continue;
                }
                Request::Beats(more) => {
                    beats.extend(more);
                    continue;
                }
                other => other,
            };
            // What came before must be written before: a claim must see what was scheduled.
            settle(store, std::mem::take(&mut writes), &replies, &observer).await?;
            let reply = match request {
                Request::Claim(want) => Some(Reply::Claimed(patiently!(&observer, store.claim_due(&want))?)),
                Request::Register(handlers, now) => {
                    let absent = patiently!(&observer, store.register(&handlers, &now))?;
                    for handler in absent {
                        observer.tell(&Observation::HandlerAbsent { handler });
                    }
                    let names: Vec<_> = handlers.iter().map(|handler| Arc::clone(&handler.name)).collect();
                    Some(Reply::Registered(store.beginnings(&names).await?))
                }
                Request::Ring => {
                    store.ring().await?;
                    Some(Reply::Rung)
                }
                Request::Breaker { handler, opened } => {
                    patiently!(&observer, store.tell_breaker(&handler, opened.as_deref()))?;
                    None
                }
                Request::Pause { handler, reason } => {
                    patiently!(&observer, store.pause(&handler, Some(&reason), None))?;
                    None
                }
                Request::Checkpoint(checkpoints) => {
                    patiently!(&observer, store.append_position(&checkpoints))?;
                    None
                }
                Request::Write(_) | Request::Beats(_) => None,
            };
            if let Some(reply) = reply {
                // Nobody listens any more when the term is over; then nobody needs the answer.
                let _ = replies.send(reply);
            }
        }
        settle(store, writes, &replies, &observer).await?;
        // After the rows they belong to.
        beats.serve(store, &observer).await?;
        gather_until = Instant::now() + GATHER;
    }
    Ok(())
}

/// Lets a batch grow until this time. Only outcomes can wait, and nobody waits for them: a handler's slot is free when its
/// attempt has ended, not when that is written.
async fn gather(requests: &mut UnboundedReceiver<Request>, waiting: &mut Vec<Request>, until: Instant) {
    let can_wait = |request: &Request| matches!(request, Request::Write(_) | Request::Beats(_));
    let only_writes = |requests: &[Request]| requests.iter().all(can_wait);
    while waiting.len() < BATCH_MAX && only_writes(waiting) {
        let room = BATCH_MAX - waiting.len();
        match tokio::time::timeout_at(until.into(), requests.recv_many(waiting, room)).await {
            Ok(received) if received > 0 => {}
            // The time is over, or the term is.
            _ => break,
        }
    }
}

/// Tells why a statement could not be done and waits; returns how long to wait the next time.
async fn wait(observer: &Observer, error: &Error, pause: Duration) -> Duration {
    observer.tell(&Observation::Hiccup { doing: "writing on the leader's session", error: error.to_string() });
    tokio::time::sleep(pause).await;
    (pause * 2).min(AGAIN_MAX)
}

async fn settle(
    store: &Store,
    writes: Vec<Write>,
    replies: &UnboundedSender<Reply>,
    observer: &Observer,
) -> Result<(), Error> {
    if writes.is_empty() {
        return Ok(());
    }
    let refused = match patiently!(observer, write(store, &writes)) {
        Ok(refused) => refused,
        Err(error) if error.is_refusal() => one_by_one(store, &writes, observer).await?,
        Err(error) => return Err(error),
    };
    for &index in &refused {
        let Write { event, handler, attempt, .. } = &writes[index];
        observer.tell(&Observation::Refused { event: *event, handler: Arc::clone(handler), attempt: *attempt });
    }
    let _ = replies.send(Reply::Written(writes.into_iter().map(|write| (write.ticket, write.ended.fate())).collect()));
    Ok(())
}

/// PostgreSQL refused the batch because of one row or more. Each delivery by itself, so that the others do not suffer;
/// one that is refused by itself is buried with the reason, unless somebody else has finished it.
async fn one_by_one(store: &Store, writes: &[Write], observer: &Observer) -> Result<Vec<usize>, Error> {
    let mut refused = Vec::new();
    for (index, one) in writes.iter().enumerate() {
        match patiently!(observer, write(store, std::slice::from_ref(one))) {
            Ok(lost) => refused.extend(lost.iter().map(|_| index)),
            Err(error) if error.code().is_some_and(|code| code.code() == "23505") => refused.push(index),
            Err(error) if error.is_refusal() => {
                let text = excerpt(&error.to_string());
                let (event, handler) = (one.event, Arc::clone(&one.handler));
                observer.tell(&Observation::Unwritable { event, handler, error: text.clone() });
                let failure = Failure::new(format!("its outcome could not be written: {text}"));
                let dead = Write { ended: Ended::Settled(Settlement::Dead { failure }), ..one.clone() };
                let dead = [dead];
                match patiently!(observer, write(store, &dead)) {
                    Err(error) if !error.is_refusal() => return Err(error),
                    // Not even that could be written: the sweep finds the delivery again.
                    Ok(_) | Err(_) => {}
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

/// The rows of one batch, by statement.
#[derive(Default)]
struct Batch {
    append: Finished,
    park: Opened,
    finish: Finished,
    reopen: Opened,
    committed: Finished,
    attempts: Attempts,
}

/// Writes a batch; returns the indexes of those whose row did not name their attempt any more.
async fn write(store: &Store, writes: &[Write]) -> Result<Vec<usize>, Error> {
    let now = Instant::now();
    let mut batch = Batch::default();
    for write in writes {
        batch.add(write, now);
    }
    // The common case is one statement, and its own transaction.
    if batch.is_append_only() {
        store.append_done(&batch.append).await?;
        return Ok(Vec::new());
    }
    store.begin().await?;
    match batch.execute(store).await {
        Ok(held) => {
            store.commit().await?;
            let lost = |write: &Write| {
                let fenced = write.has_row
                    && matches!(
                        write.ended,
                        Ended::CutOff
                            | Ended::PutBack
                            | Ended::Expired
                            | Ended::Settled(
                                Settlement::Done { .. }
                                    | Settlement::Retry { .. }
                                    | Settlement::Snooze { .. }
                                    | Settlement::Wait { .. }
                                    | Settlement::Pause { .. }
                                    | Settlement::Dead { .. }
                            )
                    );
                fenced && !held.contains(&(write.event, write.handler.to_string()))
            };
            Ok(writes.iter().enumerate().filter(|(_, write)| lost(write)).map(|(index, _)| index).collect())
        }
        Err(error) => {
            if error.is_refusal() {
                store.rollback().await?;
            }
            Err(error)
        }
    }
}

impl Batch {
    fn is_append_only(&self) -> bool {
        self.park.event_ids.is_empty()
            && self.finish.event_ids.is_empty()
            && self.reopen.event_ids.is_empty()
            && self.committed.event_ids.is_empty()
            && self.attempts.event_ids.is_empty()
            && !self.append.event_ids.is_empty()
    }

    /// Rows are opened before they are ended: one batch may hold both for one delivery.
    async fn execute(&self, store: &Store) -> Result<Pairs, Error> {
        let mut held = Pairs::new();
        if !self.append.event_ids.is_empty() {
            store.append_done(&self.append).await?;
        }
        if !self.park.event_ids.is_empty() {
            store.park(&self.park).await?;
        }
        if !self.finish.event_ids.is_empty() {
            held.extend(store.finish_open(&self.finish).await?);
        }
        if !self.reopen.event_ids.is_empty() {
            held.extend(store.reopen(&self.reopen).await?);
        }
        if !self.committed.event_ids.is_empty() {
            store.close_committed(&self.committed).await?;
        }
        if !self.attempts.event_ids.is_empty() {
            store.append_attempt(&self.attempts).await?;
        }
        Ok(held)
    }

    fn add(&mut self, write: &Write, now: Instant) {
        let failed = write.failures + 1;
        match &write.ended {
            Ended::Settled(Settlement::Done { result }) => {
                self.finish(write, "done", result.clone(), now);
                if write.has_row && write.attempt > 1 {
                    self.attempt(write, "done", None, now);
                }
            }
            Ended::Settled(Settlement::Committed) => {
                if write.has_row {
                    self.committed.push(write, "done", None, now);
                }
                if write.attempt > 1 {
                    self.attempt(write, "done", None, now);
                }
            }
            Ended::Settled(Settlement::Lost) => {
                // A row that names this attempt is left over from before somebody else finished the delivery.
                if write.has_row {
                    self.committed.push(write, "done", None, now);
                }
            }
            Ended::Settled(Settlement::Retry { after, failure, spent }) => {
                let (failures, outcome) = if *spent { (failed, "retry") } else { (write.failures, "unreachable") };
                self.open(write, "retrying", failures, Some(*after), Some(&failure.error), now);
                self.attempt(write, outcome, Some(failure), now);
            }
            Ended::Settled(Settlement::Wait { timeout }) => {
                self.open(write, "waiting", write.failures, Some(*timeout), None, now);
                self.attempt(write, "wait", None, now);
            }
            Ended::Settled(Settlement::Pause { failure }) => {
                self.open(write, "retrying", write.failures, Some(Duration::ZERO), Some(&failure.error), now);
                self.attempt(write, "paused", Some(failure), now);
            }
            Ended::Settled(Settlement::Snooze { after }) => {
                self.open(write, "scheduled", write.failures, Some(*after), None, now);
                self.attempt(write, "snooze", None, now);
            }
            Ended::Settled(Settlement::Dead { failure }) => {
                self.open(write, "dead", failed, None, Some(&failure.error), now);
                self.attempt(write, "dead", Some(failure), now);
            }
            Ended::Expired => self.finish(write, "expired", None, now),
            Ended::Blocked | Ended::PutBack => self.open(write, "blocked", write.failures, None, None, now),
            Ended::Cancelled => {
                if write.has_row {
                    self.committed.push(write, "cancelled", None, now);
                }
                self.attempt(write, "cancelled", None, now);
            }
            Ended::Scheduled { due_in } => self.open(write, "scheduled", 0, Some(*due_in), None, now),
            Ended::StillRunning => {
                self.park.push(write, "running", write.failures, None, None, now);
            }
            Ended::CutOff => {
                let error = format!("the daemon stopped while attempt {} ran", write.attempt);
                self.open(write, "retrying", write.failures, Some(Duration::ZERO), Some(&error), now);
            }
        }
    }

    fn finish(&mut self, write: &Write, outcome: &'static str, result: Option<serde_json::Value>, now: Instant) {
        let rows = if write.has_row { &mut self.finish } else { &mut self.append };
        rows.push(write, outcome, result, now);
    }

    fn open(
        &mut self,
        write: &Write,
        state: &'static str,
        failures: u32,
        due: Option<Duration>,
        error: Option<&str>,
        now: Instant,
    ) {
        let rows = if write.has_row { &mut self.reopen } else { &mut self.park };
        rows.push(write, state, failures, due, error, now);
    }

    fn attempt(&mut self, write: &Write, outcome: &'static str, failure: Option<&Failure>, now: Instant) {
        let rows = &mut self.attempts;
        rows.event_ids.push(write.event.0);
        rows.handlers.push(Arc::clone(&write.handler));
        rows.attempts.push(write.attempt.cast_signed());
        rows.began.push(micros(write.began.unwrap_or(write.at), now));
        rows.ended.push(micros(write.at, now));
        rows.outcomes.push(outcome);
        rows.errors.push(failure.map(|failure| bounded(&failure.error)));
        rows.responses.push(failure.and_then(|failure| failure.response.as_deref().map(bounded)));
    }
}

impl Finished {
    fn push(&mut self, write: &Write, outcome: &'static str, result: Option<serde_json::Value>, now: Instant) {
        self.event_ids.push(write.event.0);
        self.handlers.push(Arc::clone(&write.handler));
        self.outcomes.push(outcome);
        self.attempts.push(write.attempt.cast_signed());
        self.began.push(write.began.map(|began| micros(began, now)));
        self.ended.push(micros(write.at, now));
        self.results.push(result);
    }
}

impl Opened {
    fn push(
        &mut self,
        write: &Write,
        state: &'static str,
        failures: u32,
        due: Option<Duration>,
        error: Option<&str>,
        now: Instant,
    ) {
        self.event_ids.push(write.event.0);
        self.handlers.push(Arc::clone(&write.handler));
        self.states.push(state);
        self.attempts.push(write.attempt.cast_signed());
        self.failures.push(failures.cast_signed());
        self.due.push(due.map(|due| i64::try_from(due.as_micros()).unwrap_or(i64::MAX)));
        self.began.push((state == "running").then(|| micros(write.began.unwrap_or(write.at), now)));
        self.errors.push(error.map(bounded));
    }
}

fn micros(since: Instant, now: Instant) -> i64 {
    i64::try_from(now.saturating_duration_since(since).as_micros()).unwrap_or(i64::MAX)
}

/// A text from a handler's own `Failure` need not have gone through [`Failure::new`].
fn bounded(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX && !text.contains('\0') { text.to_owned() } else { excerpt(text) }
}
