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

use self::locked::Outcomes;
use super::beat::Beats;
use super::export::Tracer;
use super::write::{Fate, Ticket, Write};
use crate::event::EventId;
use crate::observe::{Observation, Observer};
use crate::snapshot::Snapshot;
use crate::store::registry::{Beginning, Checkpoint, Registration};
use crate::store::settle::{Claim, Wanted};
use crate::store::{Error, Store};

/// Before a statement that was refused for something that passes is tried again; doubled from the first to the second. A
/// standby takes a leader that says nothing for longer than that for a frozen one.
const AGAIN_MIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// Tries until PostgreSQL does it, or refuses for good. Nothing is given up meanwhile: what has run is not run again
/// because a disk was full. What waits is bounded by the lanes.
macro_rules! patiently {
    ($observer:expr, $ask:expr) => {
        patiently!($observer, $ask, |error: &Error| error.is_passing() || error.is_locked())
    };
    ($observer:expr, $ask:expr, $passes:expr) => {{
        let mut pause = AGAIN_MIN;
        loop {
            match $ask.await {
                Err(error) if $passes(&error) => pause = wait($observer, &error, pause).await,
                done => break done,
            }
        }
    }};
}

mod batch;
mod locked;

/// Deliveries of one handler that are written in one transaction at most. 500 to 2,000 rows measured the same speed; with 4,000
/// a lane is empty while they are written, and a drain a quarter slower.
const BATCH_MAX: usize = 1000;
/// So many handlers' batches are written together. Those of handlers for the same events belong side by side into the index of
/// `outbox.done`: four of them at once are a fifth faster than one after the other.
const BATCHES_TOGETHER: usize = 4;

/// Between two commits at least, while batches are small. Every commit waits for the disk, and so do the producers, who
/// share it: 100 of ours a second cost them less than one for every read of the log.
const GATHER: Duration = Duration::from_millis(10);

/// A request to the leader's session. They are served in order.
#[derive(Debug)]
pub enum Request {
    Write(Write),
    Claim(Vec<Wanted>),
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
    /// An instance of a flow was cancelled while it had no row, or its end was refused because of that.
    BeginFlow {
        event: EventId,
        flow: Arc<str>,
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
    /// Steps of a flow may be due.
    FlowBegun,
}

/// Serves requests until they end or the session breaks.
///
/// The channels are unbounded because the lanes bound what can be in them.
pub async fn run(
    store: &Store,
    mut requests: UnboundedReceiver<Request>,
    replies: UnboundedSender<Reply>,
    observer: Observer,
    tracer: Option<Tracer>,
) -> Result<(), Error> {
    let mut waiting = Vec::with_capacity(BATCH_MAX);
    let mut gather_until = Instant::now();
    let mut outcomes = Outcomes::new(store, &replies, &observer, tracer.as_ref());
    loop {
        let received = tokio::select! {
            received = requests.recv_many(&mut waiting, BATCH_MAX) => Some(received),
            () = outcomes.may_be_free() => None,
        };
        match received {
            None => outcomes.try_again().await?,
            Some(0) => break,
            Some(_) => {
                gather(&mut requests, &mut waiting, gather_until).await;
                let commits = waiting.iter().any(commits);
                serve(store, &mut waiting, &mut outcomes, &replies, &observer).await?;
                if commits {
                    gather_until = Instant::now() + GATHER;
                }
            }
        }
    }
    outcomes.try_again().await
}

async fn serve(
    store: &Store,
    waiting: &mut Vec<Request>,
    outcomes: &mut Outcomes<'_>,
    replies: &UnboundedSender<Reply>,
    observer: &Observer,
) -> Result<(), Error> {
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
        outcomes.write(std::mem::take(&mut writes)).await?;
        if let Some(reply) = answer(store, request, observer).await? {
            // Nobody listens any more when the term is over; then nobody needs the answer.
            let _ = replies.send(reply);
        }
    }
    outcomes.write(writes).await?;
    // After the rows they belong to.
    beats.keep(store, observer).await?;
    if !beats.silent.is_empty() {
        let asked = beats.asked();
        beats.answer(patiently!(observer, store.heartbeat_age(&asked))?);
    }
    Ok(())
}

async fn answer(store: &Store, request: Request, observer: &Observer) -> Result<Option<Reply>, Error> {
    Ok(match request {
        Request::Claim(want) => Some(Reply::Claimed(patiently!(observer, store.claim_due(&want))?)),
        Request::Register(handlers, now) => {
            let absent = patiently!(observer, store.register(&handlers, &now))?;
            for handler in absent {
                observer.tell(&Observation::HandlerAbsent { handler });
            }
            let names: Vec<_> = handlers.iter().map(|handler| Arc::clone(&handler.name)).collect();
            Some(Reply::Registered(patiently!(observer, store.beginnings(&names))?))
        }
        Request::BeginFlow { event, flow } => {
            match patiently!(observer, store.begin_flows(&[event.0], std::slice::from_ref(&flow))) {
                // It is told again with the next claim.
                Err(error) if error.is_refusal() => {
                    let doing = "cancelling a flow";
                    observer.tell(&Observation::Hiccup { doing, error: error.to_string() });
                }
                begun => begun?,
            }
            Some(Reply::FlowBegun)
        }
        Request::Ring => {
            patiently!(observer, store.ring())?;
            Some(Reply::Rung)
        }
        Request::Breaker { handler, opened } => {
            patiently!(observer, store.tell_breaker(&handler, opened.as_deref()))?;
            None
        }
        Request::Pause { handler, reason } => {
            patiently!(observer, store.pause(&handler, Some(&reason), None))?;
            None
        }
        Request::Checkpoint(checkpoints) => {
            patiently!(observer, store.append_position(&checkpoints))?;
            None
        }
        Request::Write(_) | Request::Beats(_) => None,
    })
}

/// Whether the disk is waited for. It is for a claim that finds something, but every bell asks for one that finds nothing:
/// the outcome of the event that rang must not wait for company because of it.
fn commits(request: &Request) -> bool {
    !matches!(request, Request::Claim(_))
}

/// Lets a batch grow until this time. Only outcomes can wait, and nobody waits for them: a handler's slot is free when its
/// attempt has ended, not when that is written.
async fn gather(requests: &mut UnboundedReceiver<Request>, waiting: &mut Vec<Request>, until: Instant) {
    let can_wait = |request: &Request| matches!(request, Request::Write(_) | Request::Beats(_));
    let only_writes = |requests: &[Request]| requests.iter().all(can_wait);
    while only_writes(waiting) {
        let room = most(waiting).saturating_sub(waiting.len());
        if room == 0 {
            break;
        }
        match tokio::time::timeout_at(until.into(), requests.recv_many(waiting, room)).await {
            Ok(received) if received > 0 => {}
            // The time is over, or the term is.
            _ => break,
        }
    }
}

/// How many requests are served together: a batch for each handler that is among them.
fn most(waiting: &[Request]) -> usize {
    let mut handlers: Vec<&Arc<str>> = Vec::with_capacity(BATCHES_TOGETHER);
    for request in waiting {
        if let Request::Write(Write { handler, .. }) = request
            && !handlers.iter().any(|known| Arc::ptr_eq(known, handler))
        {
            handlers.push(handler);
            if handlers.len() == BATCHES_TOGETHER {
                break;
            }
        }
    }
    BATCH_MAX * handlers.len().max(1)
}

/// Tells why a statement could not be done and waits; returns how long to wait the next time.
async fn wait(observer: &Observer, error: &Error, pause: Duration) -> Duration {
    observer.tell(&Observation::Hiccup { doing: "writing on the leader's session", error: error.to_string() });
    tokio::time::sleep(pause).await;
    (pause * 2).min(AGAIN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_that_a_bell_asks_for_lets_no_outcome_wait() {
        assert!(!commits(&Request::Claim(Vec::new())));
        assert!(commits(&Request::Checkpoint(Vec::new())));
        assert!(commits(&Request::Ring));
    }
}
