//! Reading: what is asked of the tail's session, one thing at a time (pages of the log, changes of the bell's flag), and
//! what the term does with the answers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::bell::Next;
use super::change::routed;
use super::lane::LaneId;
use super::tail::Read;
use super::term::Term;
use crate::event::EventId;
use crate::observe::Observation;
use crate::snapshot::Snapshot;
use crate::store::log::Page;
use crate::store::{Error, Store};

/// What an earlier term may have settled already: events visible in the snapshot with which this term began, and ids
/// that had been given out by then (a row applied by logical replication carries a transaction id of its own).
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) snapshot: Snapshot,
    pub(super) last_id: i64,
}

/// One thing to ask.
pub(super) enum Job {
    Read { read: Read, handlers: Vec<Arc<str>> },
    FallAsleep,
    WakeUp,
}

/// Its answer.
pub(super) enum Answer {
    Head { page: Page, settled: Settled, lanes: Vec<LaneId> },
    Behind { page: Page, settled: Settled, lane: LaneId },
    FellAsleep { producers: Vec<u64> },
    WokeUp,
}

/// Deliveries of a page that need not run: they have been settled before.
pub(super) type Settled = HashSet<(EventId, String)>;

pub(super) async fn ask(store: Arc<Store>, earlier: Arc<Earlier>, job: Job) -> Result<Answer, Error> {
    match job {
        Job::FallAsleep => {
            store.bell_set(true).await?;
            Ok(Answer::FellAsleep { producers: store.bell_producers().await? })
        }
        Job::WakeUp => {
            store.bell_set(false).await?;
            Ok(Answer::WokeUp)
        }
        Job::Read { read: Read::Head { cursor, limit, lanes }, handlers } => {
            let page = store.tail_head(&cursor, limit).await?;
            let settled =
                settled(&store, &page, &handlers, |xid, id| earlier.snapshot.sees(xid) || id <= earlier.last_id)
                    .await?;
            Ok(Answer::Head { page, settled, lanes })
        }
        Job::Read { read: Read::Behind { lane, cursor, head, limit }, handlers } => {
            let page = store.tail_behind(&cursor, &head, limit).await?;
            // A handler that returns to the configuration has settled more than its stored position says.
            let settled = settled(&store, &page, &handlers, |_, _| true).await?;
            Ok(Answer::Behind { page, settled, lane })
        }
    }
}

async fn settled(
    store: &Store,
    page: &Page,
    handlers: &[Arc<str>],
    may_be: impl Fn(u64, i64) -> bool,
) -> Result<Settled, Error> {
    let ids: Vec<i64> = page
        .events
        .iter()
        .map(|e| (e.xid, e.event.id.0))
        .filter(|&(xid, id)| may_be(xid, id))
        .map(|(_, id)| id)
        .collect();
    if ids.is_empty() {
        return Ok(Settled::new());
    }
    let handlers: Vec<&str> = handlers.iter().map(|handler| &**handler).collect();
    store.settled_among(&ids, &handlers).await
}

impl Term<'_> {
    /// Asks the tail's session for the next thing, if it is free.
    pub(super) fn ask(&mut self, now: Instant) {
        if self.job.is_some() {
            return;
        }
        let bell = if self.tail.wants_head() { self.bell.next(now) } else { Next::Wait(None) };
        let job = match bell {
            Next::FallAsleep => Job::FallAsleep,
            Next::WakeUp => Job::WakeUp,
            Next::Read | Next::Wait(_) => {
                let (slots, observer) = (&self.slots, &self.context.observer);
                let room = |lane: LaneId| slots.get(&lane).map_or(0, |slot| slot.lane.room());
                let fell = |lane: LaneId| {
                    if let Some(slot) = slots.get(&lane) {
                        observer.tell(&Observation::FellBehind { handler: Arc::clone(&slot.spec.name) });
                    }
                };
                let Some(read) = self.tail.next(bell == Next::Read, room, fell) else { return };
                if matches!(read, Read::Head { .. }) {
                    self.bell.reads();
                }
                let lanes = match &read {
                    Read::Head { lanes, .. } => lanes.as_slice(),
                    Read::Behind { lane, .. } => std::slice::from_ref(lane),
                };
                let handlers =
                    lanes.iter().filter_map(|lane| Some(Arc::clone(&self.slots.get(lane)?.spec.name))).collect();
                Job::Read { read, handlers }
            }
        };
        self.job = Some(Box::pin(ask(Arc::clone(&self.store), Arc::clone(&self.earlier), job)));
    }

    pub(super) fn answered(&mut self, answer: Answer, now: Instant) {
        match answer {
            Answer::FellAsleep { producers } => self.bell.fell_asleep(producers, now),
            Answer::WokeUp => {
                self.context.observer.tell(&Observation::Awake);
                self.bell.woke_up(now);
            }
            Answer::Head { page, settled, lanes } => {
                let was_asleep = self.bell.is_asleep();
                let events = page.events.len();
                self.heard(now, events, page.snapshot.as_ref(), was_asleep);
                let cursor = page.cursor.clone();
                self.offer(page, &settled, &lanes, now);
                self.dirty |= events > 0;
                let position = self.tail.read_head(cursor).clone();
                for lane in lanes {
                    // One that is leaving was offered nothing.
                    if let Some(slot) = self.slots.get_mut(&lane).filter(|slot| !slot.leaving) {
                        slot.lane.close_window(&position);
                    }
                }
            }
            Answer::Behind { page, settled, lane } => {
                let cursor = page.cursor.clone();
                self.offer(page, &settled, &[lane], now);
                let (position, caught_up) = self.tail.read_behind(lane, cursor);
                self.dirty = true;
                if let Some(slot) = self.slots.get_mut(&lane).filter(|slot| !slot.leaving) {
                    slot.lane.close_window(&position);
                    if caught_up {
                        let handler = Arc::clone(&slot.spec.name);
                        self.context.observer.tell(&Observation::CaughtUp { handler });
                    }
                }
            }
        }
    }

    fn heard(&mut self, now: Instant, events: usize, snapshot: Option<&Snapshot>, was_asleep: bool) {
        let observer = &self.context.observer;
        if events > 0 {
            observer.tell(&Observation::PageRead { events });
            if std::mem::take(&mut self.polled) && was_asleep {
                observer.tell(&Observation::PollFound { events });
            }
        }
        self.polled = false;
        if let Some(snapshot) = snapshot {
            self.bell.read(events, snapshot, now);
        }
        if self.bell.is_asleep() && !was_asleep {
            observer.tell(&Observation::Asleep);
        }
        self.poll_at = self.context.daemon.poll_interval.map(|interval| now + interval);
    }

    /// Hands the events of a page to those of these lanes that want them.
    fn offer(&mut self, page: Page, settled: &Settled, lanes: &[LaneId], now: Instant) {
        let mut steps = Vec::new();
        for logged in page.events {
            let offer = (&logged).into();
            let wanting = routed(&mut self.routes, &self.slots, &logged.event.topic);
            let event = Arc::new(logged.event);
            for lane in wanting.iter().filter(|lane| lanes.contains(lane)) {
                let Some(slot) = self.slots.get_mut(lane) else { continue };
                let known = !settled.is_empty() && settled.contains(&(event.id, slot.spec.name.to_string()));
                if !known && !slot.leaving && !self.stopping {
                    slot.lane.offer(&event, &offer, now, &mut steps);
                }
            }
        }
        self.take(steps);
    }
}
