//! Attempts that begin and end, and what is claimed, cancelled and written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::super::context::Part;
use super::super::lane::{EndedAttempt, Start, Step};
use super::super::settle::Request;
use super::super::write::{Ended, Fate, LaneId, Ticket, Write};
use super::{PULSE_EVERY, Term};
use crate::event::{Attempt, EventId, Heartbeats};
use crate::observe::Observation;
use crate::outcome::{Outcome, Settlement, failed_as};
use crate::store::settle::{Claim, Standing};

impl Term<'_> {
    pub(super) fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Start(start) => self.start_attempt(start),
                Step::StartBatch(starts) => self.start_batch(starts),
                Step::Write(write) => {
                    self.tell_taken(&write);
                    self.request(Request::Write(write));
                }
                Step::Lasts(ticket) => self.stop_instance(ticket),
                Step::Withdrawn(ticket) => self.step_left(ticket),
            }
        }
        self.runner.go();
    }

    /// What becomes of a delivery without an outcome of its own is told when it is known.
    fn tell_taken(&self, write: &Write) {
        let &Write { event, ref handler, attempt, trace, ref ended, .. } = write;
        let handler = || Arc::clone(handler);
        self.context.observer.tell(&match *ended {
            Ended::Expired => Observation::Expired { event, handler: handler(), attempt, trace },
            Ended::Merged { into } => Observation::Merged { event, handler: handler(), trace, into },
            Ended::Cancelled => Observation::Cancelled { event, handler: handler(), attempt, trace },
            _ => return,
        });
    }

    fn start_attempt(&mut self, start: Start) {
        let Some(slot) = self.slots.get(&start.ticket.lane) else { return };
        if let Part::Flow(flow) = &slot.spec.part {
            let flow = Arc::clone(flow);
            return self.begin_instance(&flow, start);
        }
        let (ticket, began, handler) = (start.ticket, start.began, Arc::clone(&slot.spec.handler));
        let limits = slot.lane.config().into();
        let Some(attempt) = self.attempt(start, Heartbeats::default()) else { return };
        self.runner.start(ticket, handler, attempt, limits);
        self.counts(ticket.lane, began);
    }

    fn start_batch(&mut self, starts: Vec<Start>) {
        let Some(&Start { ticket: Ticket { lane, .. }, began, .. }) = starts.first() else { return };
        let Some(slot) = self.slots.get(&lane) else { return };
        let (handler, limits) = (Arc::clone(&slot.spec.handler), slot.lane.config().into());
        // What the call says, it says for each.
        let heartbeats = Heartbeats::default();
        let attempts: Vec<(Ticket, Attempt)> = starts
            .into_iter()
            .filter_map(|start| Some((start.ticket, self.attempt(start, heartbeats.clone())?)))
            .collect();
        self.runner.start_batch(attempts, handler, limits);
        self.counts(lane, began);
    }

    /// What the handler is told.
    fn attempt(&mut self, start: Start, heartbeats: Heartbeats) -> Option<Attempt> {
        let slot = self.slots.get(&start.ticket.lane)?;
        let callback = self.context.callback_url.as_ref().filter(|_| slot.lane.config().callback);
        let token = || self.callback_key.token(&start.event, &slot.spec.name, Timestamp::now());
        let callback = callback.map(|url| format!("{url}/{}", token()));
        if let (1, Some(series)) = (start.attempt, &slot.series) {
            // The clock is read once for all that begins together.
            if self.clock.0 != start.began {
                self.clock = (start.began, Timestamp::now().as_microsecond());
            }
            let queued = self.clock.1 - start.event.created_at.as_microsecond();
            series.began(Duration::from_micros(queued.try_into().unwrap_or_default()));
        }
        Some(Attempt {
            event: start.event,
            handler: Arc::clone(&slot.spec.name),
            number: start.attempt,
            has_row: start.has_row,
            installation: self.installation,
            callback,
            results: start.results,
            trace: start.trace,
            heartbeats,
        })
    }

    pub(super) fn ended(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) {
        let Some(slot) = self.slots.get_mut(&ticket.lane) else { return };
        let spares = slot.gate.spares(now);
        let mut steps = Vec::new();
        let ended = slot.lane.ended(ticket, outcome, spares, now, fastrand::f64(), &mut steps);
        if let Some(ended) = ended {
            self.step_ended(ticket, &ended.settlement);
            let error = match &ended.settlement {
                Settlement::Retry { failure, .. } | Settlement::Dead { failure } | Settlement::Pause { failure } => {
                    failure.error.clone()
                }
                _ => String::new(),
            };
            if let (Some(began), Some(verdict)) = (ended.began, ended.verdict) {
                self.judge(ticket.lane, began, verdict, &error, now);
            }
            if matches!(ended.settlement, Settlement::Pause { .. }) {
                self.pause(ticket.lane, error);
            }
            self.tell_ended(ticket.lane, ended, now);
        }
        self.take(steps);
    }

    fn tell_ended(&self, id: LaneId, ended: EndedAttempt, now: Instant) {
        let Some(slot) = self.slots.get(&id) else { return };
        let EndedAttempt { event, trace, attempt, began, settlement, .. } = ended;
        let handler = Arc::clone(&slot.spec.name);
        let ran = began.map_or(Duration::ZERO, |began| now - began);
        if let (Some(series), Some(_)) = (&slot.series, began) {
            series.ran(ran);
        }
        self.context.observer.tell(&match settlement {
            Settlement::Done { .. } | Settlement::Committed { .. } => {
                Observation::Done { event, handler, attempt, trace, ran }
            }
            Settlement::Retry { after, failure, spent, .. } => {
                let outcome = failed_as(spent);
                Observation::Retrying { event, handler, attempt, trace, outcome, after, error: failure.error }
            }
            Settlement::Snooze { after, .. } => Observation::Snoozed { event, handler, attempt, trace, after },
            Settlement::Wait { after, asked } => {
                let timeout = asked.left.unwrap_or(after);
                Observation::Waiting { event, handler, attempt, trace, timeout }
            }
            Settlement::Pause { failure } => {
                let (outcome, after) = ("paused", Duration::ZERO);
                Observation::Retrying { event, handler, attempt, trace, outcome, after, error: failure.error }
            }
            Settlement::Lost => Observation::Refused { event, handler, attempt, trace },
            Settlement::Dead { failure } => Observation::Dead { event, handler, attempt, trace, error: failure.error },
        });
    }

    pub(super) fn written(&mut self, written: Vec<(Ticket, Fate)>, now: Instant) {
        self.dirty = true;
        let mut steps = Vec::new();
        for (ticket, fate) in written {
            let Some(slot) = self.slots.get_mut(&ticket.lane) else { continue };
            let refused = if fate == Fate::Refused { slot.lane.event_of(ticket) } else { None };
            slot.lane.written(ticket, fate, now, &mut steps);
            if self.has_flows {
                self.flow_written(ticket, fate, refused, now);
            }
        }
        self.take(steps);
    }

    /// Begins what may begin.
    pub(super) fn start(&mut self, now: Instant) {
        self.know_step_lanes();
        let ids: Vec<LaneId> = self.slots.keys().copied().collect();
        loop {
            self.flows.take_passed_on();
            for &id in &ids {
                let room = self.room(id, now);
                let Some(slot) = self.slots.get_mut(&id) else { continue };
                let mut steps = Vec::new();
                slot.lane.start(room, now, &mut steps);
                slot.lane.record(now, &mut steps);
                slot.lane.give_back(now, &mut steps);
                self.take(steps);
            }
            // A flow that begins passes steps on, and their lane may have been asked before.
            if !self.flows.take_passed_on() {
                break;
            }
        }
    }

    /// Asks for what is due, one claim at a time; the leader's session is heard from even when nothing is.
    pub(super) fn claim(&mut self, now: Instant, pulse: bool) {
        if self.claiming || self.stopping {
            return;
        }
        // What has been done by hand comes with every claim, so a bell asks for all handlers.
        let all = pulse || std::mem::take(&mut self.look);
        let ids: Vec<LaneId> = self.slots.keys().copied().collect();
        let mut want = Vec::new();
        for id in ids {
            let room = self.room(id, now);
            let Some(slot) = self.slots.get_mut(&id).filter(|slot| !slot.leaving) else { continue };
            let wanted = slot.lane.claim(room, now);
            if !wanted.is_empty() || all {
                slot.gate.asks();
                want.push(wanted);
            }
        }
        if !want.is_empty() || pulse {
            self.claiming = true;
            self.doubts.claim_asked = now;
            self.pulse_at = now + PULSE_EVERY;
            self.request(Request::Claim(want));
        }
    }

    pub(super) fn claimed(&mut self, claim: Claim, now: Instant) {
        self.claiming = false;
        self.doubts.claimed();
        if std::mem::take(&mut self.poll_asked) {
            if claim.snapshot.is_some_and(|snapshot| self.tail.has_read(&snapshot)) {
                self.context.health.looked(now);
            } else {
                self.poll(now);
            }
        }
        for Standing { handler, found, pause, limits } in claim.standings {
            // A handler that is leaving runs what was claimed for it: the attempt has been counted.
            let named = |(_, slot): &(&LaneId, &mut super::Slot)| *slot.spec.name == *handler;
            let Some((&id, slot)) = self.slots.iter_mut().find(named) else { continue };
            let mut steps = Vec::new();
            let ended = slot.lane.claimed(found, now, fastrand::f64(), &mut steps);
            if slot.leaving || self.stopping {
                // What cannot begin at once does not begin any more.
                slot.lane.drop_queue(now, &mut steps);
            }
            self.heard_pause(id, pause, now);
            self.heard_limits(id, limits, now);
            for ended in ended {
                self.tell_ended(id, ended, now);
            }
            self.take(steps);
        }
        for (event, handler) in claim.cancelled {
            self.cancel(event, &handler, now);
        }
        for (event, flow) in claim.cancelled_flows {
            self.cancel_flow(event, flow, now);
        }
    }

    /// A delivery was cancelled by hand: an attempt that runs ends now.
    fn cancel(&mut self, event: EventId, handler: &str, now: Instant) {
        let named = |(_, slot): &(&LaneId, &mut super::Slot)| *slot.spec.name == *handler;
        let Some((&id, slot)) = self.slots.iter_mut().find(named) else { return };
        let mut steps = Vec::new();
        let running = slot.lane.cancel(event, now, &mut steps);
        for (ticket, began) in running {
            self.runner.cancel(&ticket);
            if let Some(began) = began {
                self.withdrawn(id, began);
            }
        }
        self.take(steps);
    }

    pub(super) fn all_may_be_due(&mut self, now: Instant) {
        for slot in self.slots.values_mut() {
            slot.lane.due_within(Duration::ZERO, now);
        }
    }
}
