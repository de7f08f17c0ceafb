//! When the log is read, for whom, and what becomes of a page.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::super::bell::Next;
use super::super::lane::Offer;
use super::super::read::{Answer, Job, Settled, ask};
use super::super::tail::Read;
use super::super::write::LaneId;
use super::{Slot, Term};
use crate::observe::Observation;
use crate::snapshot::Snapshot;
use crate::store::log::Page;

/// Topics whose handlers are remembered.
const ROUTES_MAX: usize = 10_000;

impl Term<'_> {
    /// Asks the tail's session for the next thing, if it is free.
    pub(super) fn ask(&mut self, now: Instant) {
        if self.job.is_some() {
            return;
        }
        if std::mem::take(&mut self.flag_is_stale) {
            self.doubts.job_asked = now;
            let job = Job::SetFlag { asleep: !self.bell.is_awake() };
            self.job = Some(Box::pin(ask(Arc::clone(&self.store), Arc::clone(&self.earlier), job)));
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
                let handlers = lanes
                    .iter()
                    .filter_map(|lane| self.slots.get(lane))
                    .flat_map(|slot| slot.spec.rows())
                    .cloned()
                    .collect();
                Job::Read { read, handlers }
            }
        };
        self.doubts.job_asked = now;
        self.job = Some(Box::pin(ask(Arc::clone(&self.store), Arc::clone(&self.earlier), job)));
    }

    pub(super) fn answered(&mut self, answer: Answer, now: Instant) {
        if std::mem::take(&mut self.look_next) {
            self.look(now);
        }
        match answer {
            Answer::FlagSet => {}
            Answer::FellAsleep { producers } => self.bell.fell_asleep(producers, now),
            Answer::WokeUp => {
                self.context.observer.tell(&Observation::Awake);
                self.bell.woke_up(now);
            }
            Answer::Head { page, settled, lanes } => {
                self.context.health.looked(now);
                let was_asleep = self.bell.is_asleep();
                let events = page.events.len();
                self.heard(now, events, page.snapshot.as_ref(), was_asleep);
                let cursor = page.cursor.clone();
                let (newest, goes_on) = (newest(&page), page.full);
                self.offer(page, &settled, &lanes, now);
                self.dirty |= events > 0;
                let position = self.tail.read_head(cursor).clone();
                for lane in lanes {
                    // One that is leaving was offered nothing.
                    if let Some(slot) = self.slots.get_mut(&lane).filter(|slot| !slot.leaving) {
                        slot.lane.close_window(&position);
                        slot.newest = slot.newest.max(newest);
                        slot.goes_on = goes_on;
                    }
                }
            }
            Answer::Behind { page, settled, lane } => {
                if !page.events.is_empty() {
                    self.context.observer.tell(&Observation::PageRead { events: page.events.len() });
                }
                let cursor = page.cursor.clone();
                let newest = newest(&page);
                self.offer(page, &settled, &[lane], now);
                let (position, caught_up) = self.tail.read_behind(lane, cursor);
                self.dirty = true;
                if let Some(slot) = self.slots.get_mut(&lane).filter(|slot| !slot.leaving) {
                    slot.lane.close_window(&position);
                    slot.newest = slot.newest.max(newest);
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
            let offer: Offer = (&logged).into();
            let wanting = routed(&mut self.routes, &self.slots, &logged.event.topic);
            let event = Arc::new(logged.event);
            for lane in wanting.iter().filter(|lane| lanes.contains(lane)) {
                let Some(slot) = self.slots.get_mut(lane) else { continue };
                let is_settled =
                    |name: &Arc<str>| !settled.is_empty() && settled.contains(&(event.id, name.to_string()));
                if !is_settled(&slot.spec.name) && !slot.leaving && !self.stopping {
                    // Its own row is not there.
                    let begun = slot.spec.rows().skip(1).any(is_settled);
                    slot.lane.offer(&event, &Offer { begun, ..offer }, now, &mut steps);
                }
            }
        }
        self.take(steps);
    }
}

/// The highest id of a page.
fn newest(page: &Page) -> Option<i64> {
    page.events.iter().map(|logged| logged.event.id.0).max()
}

/// The lanes that want a topic, remembered.
fn routed<'r>(
    routes: &'r mut HashMap<String, Vec<LaneId>>,
    slots: &BTreeMap<LaneId, Slot>,
    topic: &str,
) -> &'r [LaneId] {
    if !routes.contains_key(topic) {
        if routes.len() >= ROUTES_MAX {
            routes.clear();
        }
        let wants = |slot: &Slot| slot.lane.config().topics.iter().any(|pattern| pattern.matches(topic));
        let lanes = slots.iter().filter(|(_, slot)| wants(slot)).map(|(&lane, _)| lane).collect();
        routes.insert(topic.to_owned(), lanes);
    }
    &routes[topic]
}
