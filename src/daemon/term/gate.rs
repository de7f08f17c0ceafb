//! What keeps a handler from beginning attempts: a pause, and the breakers of its target. A handler has one of its own, for what
//! fails there; handlers with one host share one more, for what cannot be reached.

use std::sync::Arc;
use std::time::Instant;

use super::super::breaker::{Breaker, Change};
use super::super::context::Part;
use super::super::settle::Request;
use super::super::write::LaneId;
use super::{Slot, Term};
use crate::metrics::Shown;
use crate::observe::Observation;
use crate::outcome::Fault;
use crate::store::registry::Pause;

/// Until when nothing begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paused {
    UntilResumed,
    Until(Instant),
}

/// What one handler is held up by.
pub(super) struct Gate {
    paused: Option<Paused>,
    /// The pause is not written yet, so an answer that knows nothing of it is old.
    pause_is_news: bool,
    /// `None`: the handler wants no breaker.
    pub(super) breaker: Option<Breaker>,
    /// What the database says of its breakers.
    told_open: bool,
}

impl Gate {
    pub(super) fn new(breaker: bool, broken: bool, pause: Option<Pause>, now: Instant) -> Self {
        let made = || if broken { Breaker::open(now) } else { Breaker::new() };
        let paused = pause.map(|pause| paused(pause, now));
        Self { paused, pause_is_news: false, breaker: breaker.then(made), told_open: broken }
    }

    /// Takes another setting; a breaker that stays keeps what it knows.
    pub(super) fn configure(&mut self, breaker: bool) {
        self.breaker = if breaker { self.breaker.take().or_else(|| Some(Breaker::new())) } else { None };
    }

    /// Whatever is asked of the database from here on is answered after the pause was written.
    pub(super) fn asks(&mut self) {
        self.pause_is_news = false;
    }

    fn is_paused(&self, now: Instant) -> bool {
        match self.paused {
            None => false,
            Some(Paused::UntilResumed) => true,
            Some(Paused::Until(at)) => now < at,
        }
    }

    /// When it opens by itself.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let paused = match self.paused {
            Some(Paused::Until(at)) if at > now => Some(at),
            _ => None,
        };
        paused.into_iter().chain(self.breaker.as_ref().and_then(|breaker| breaker.next(now))).min()
    }

    /// The least fault that spends no attempt.
    pub(super) fn spares(&self, now: Instant) -> Option<Fault> {
        self.breaker.as_ref().map(|breaker| breaker.spares(now))
    }
}

fn paused(pause: Pause, now: Instant) -> Paused {
    match pause {
        Pause::UntilResumed => Paused::UntilResumed,
        Pause::For(time) => Paused::Until(now + time),
    }
}

impl Term<'_> {
    /// Calls that may begin for this handler now.
    pub(super) fn room(&self, id: LaneId, now: Instant) -> usize {
        let Some(slot) = self.slots.get(&id).filter(|slot| !slot.leaving && !self.stopping) else { return 0 };
        if slot.gate.is_paused(now) || self.may_be_deposed(now) {
            return 0;
        }
        if let Part::Flow(flow) = &slot.spec.part {
            return self.room_of_first_steps(id, flow, now);
        }
        let own = slot.gate.breaker.as_ref().map_or(usize::MAX, |breaker| breaker.room(now));
        let mut room = own.saturating_sub(slot.lane.beginning());
        if let Some((host, breaker)) = self.host(slot) {
            let shared = breaker.room(now);
            if shared < usize::MAX {
                let others = self.slots.values().filter(|other| other.spec.host.as_ref() == Some(host));
                room = room.min(shared.saturating_sub(others.map(|other| other.lane.beginning()).sum()));
            }
        }
        room
    }

    fn host<'s>(&'s self, slot: &'s Slot) -> Option<(&'s Arc<str>, &'s Breaker)> {
        let host = slot.spec.host.as_ref().filter(|_| slot.gate.breaker.is_some())?;
        Some((host, self.hosts.get(host)?))
    }

    /// A call has begun.
    pub(super) fn counts(&mut self, id: LaneId, began: Instant) {
        for breaker in self.breakers(id) {
            breaker.began(began);
        }
    }

    /// A call was taken away before it had an outcome.
    pub(super) fn withdrawn(&mut self, id: LaneId, began: Instant) {
        for breaker in self.breakers(id) {
            breaker.withdrawn(began);
        }
    }

    fn breakers(&mut self, id: LaneId) -> impl Iterator<Item = &mut Breaker> {
        let slot = self.slots.get_mut(&id).filter(|slot| slot.gate.breaker.is_some());
        let (own, host) = slot.map_or((None, None), |slot| (slot.gate.breaker.as_mut(), slot.spec.host.as_ref()));
        let host = host.and_then(|host| self.hosts.get_mut(host));
        own.into_iter().chain(host)
    }

    /// A call has ended, and says this about the target: whoever is not reached by one handler is not reached by the others with
    /// that host.
    pub(super) fn judge(&mut self, id: LaneId, began: Instant, verdict: Result<(), Fault>, error: &str, now: Instant) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some(own) = slot.gate.breaker.as_mut() else { return };
        let host = slot.spec.host.clone();
        let random = fastrand::f64();
        let changes = match host.as_ref().and_then(|host| self.hosts.get_mut(host)) {
            None => [own.ended(began, verdict, now, random), None],
            Some(shared) if verdict == Err(Fault::Unreachable) => {
                own.withdrawn(began);
                [None, shared.ended(began, verdict, now, random)]
            }
            Some(shared) => [own.ended(began, verdict, now, random), shared.ended(began, Ok(()), now, random)],
        };
        if changes == [None, None] {
            return;
        }
        let opened = changes.contains(&Some(Change::Opened));
        let concerned: Vec<LaneId> = match host {
            Some(host) if changes[1].is_some() => self.with_host(&host),
            _ => vec![id],
        };
        for id in concerned {
            self.tell_gate(id, opened.then_some(error));
        }
    }

    fn with_host(&self, host: &Arc<str>) -> Vec<LaneId> {
        let has = |slot: &Slot| slot.spec.host.as_ref() == Some(host) && slot.gate.breaker.is_some();
        self.slots.iter().filter(|(_, slot)| has(slot)).map(|(&id, _)| id).collect()
    }

    /// Whether nothing but probes is sent to a handler's target: by its own breaker, or by that of its host.
    fn is_broken(&self, slot: &Slot) -> bool {
        slot.gate.breaker.as_ref().is_some_and(Breaker::is_open)
            || self.host(slot).is_some_and(|(_, breaker)| breaker.is_open())
    }

    /// Shows what is so now, whatever has made it so.
    pub(super) fn show(&self, now: Instant) {
        for (&id, slot) in &self.slots {
            if let Some(series) = &slot.series {
                series.show(&Shown {
                    running: slot.lane.running(),
                    queued: slot.lane.waiting(),
                    oldest: slot.lane.oldest(),
                    read_to: slot.newest.filter(|_| slot.goes_on || self.tail.is_behind(id)),
                    behind: self.tail.head().xmax().saturating_sub(slot.lane.position().xmax()),
                    broken: self.is_broken(slot),
                    paused: slot.gate.is_paused(now),
                });
            }
        }
        self.context.health.waits_for_an_answer(self.may_be_deposed(now));
    }

    /// Tells of breakers that another configuration has opened or closed: it takes a handler's breaker away, or names another host.
    pub(super) fn tell_gates(&mut self) {
        let stay = self.slots.iter().filter(|(_, slot)| !slot.leaving);
        let ids: Vec<LaneId> = stay.map(|(&id, _)| id).collect();
        for id in ids {
            self.tell_gate(id, None);
        }
    }

    /// Tells that a handler's breakers have opened or closed, if that is news.
    fn tell_gate(&mut self, id: LaneId, error: Option<&str>) {
        let Some(slot) = self.slots.get(&id) else { return };
        let open = self.is_broken(slot);
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.gate.told_open != open) else { return };
        slot.gate.told_open = open;
        let handler = Arc::clone(&slot.spec.name);
        let opened = open.then(|| error.unwrap_or("its target fails").to_owned());
        self.context.observer.tell(&match opened.clone() {
            Some(error) => Observation::BreakerOpened { handler: Arc::clone(&handler), error },
            None => Observation::BreakerClosed { handler: Arc::clone(&handler) },
        });
        self.request(Request::Breaker { handler, opened });
    }

    /// A handler's target is gone: nothing more is sent to it until somebody resumes the handler.
    pub(super) fn pause(&mut self, id: LaneId, reason: String) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.gate.paused.replace(Paused::UntilResumed).is_none() {
            slot.gate.pause_is_news = true;
            let handler = Arc::clone(&slot.spec.name);
            self.context.observer.tell(&Observation::Paused { handler: Arc::clone(&handler), reason: reason.clone() });
            self.request(Request::Pause { handler, reason });
        }
    }

    /// What the database says about a handler's pause.
    pub(super) fn heard_pause(&mut self, id: LaneId, pause: Option<Pause>, now: Instant) {
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| !slot.gate.pause_is_news) else { return };
        let was = slot.gate.is_paused(now);
        slot.gate.paused = pause.map(|pause| paused(pause, now));
        let handler = Arc::clone(&slot.spec.name);
        match (was, slot.gate.is_paused(now)) {
            (false, true) => {
                let reason = "by hand".to_owned();
                self.context.observer.tell(&Observation::Paused { handler, reason });
            }
            (true, false) => self.context.observer.tell(&Observation::Resumed { handler }),
            _ => {}
        }
    }
}
