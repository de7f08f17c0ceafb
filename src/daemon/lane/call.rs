//! Calls: what limits a lane is counted in calls, of one delivery each, or of a batch.
//!
//! A batch is put together when it begins: from what is queued as soon as there are `max`, or the first has waited for `wait`, or the
//! lane takes no more; from what was claimed as it comes. From then on each of its deliveries goes its own way.
//!
//! A call that fails as a whole says nothing about which of its events it failed for. So a delivery goes in a batch half as large with
//! every failure, and in the end by itself: one that cannot be handled does not take others with it.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::write::{Ended, Ticket};
use super::delivery::{Stage, Step};
use super::{Lane, Record};
use crate::config::BatchConfig;
use crate::outcome::{Fault, Outcome};

/// A batch that runs, or is about to.
#[derive(Debug)]
pub(super) struct Batch {
    deliveries: Vec<Ticket>,
    /// What its first delivery says of it: it came from `outbox.open`, and why.
    claimed: bool,
    parked: bool,
    /// Those that have not ended and were not taken away.
    left: usize,
    /// Those whose row is being written; it begins when there are none.
    recording: usize,
    /// What its outcomes say about the target, as far as they are known: one that is good speaks for it.
    verdict: Option<Result<(), Fault>>,
}

/// A place in a batch: the number of its first delivery.
pub(super) type BatchId = u64;

impl Lane {
    /// Calls that run, or will when a claim is answered.
    pub(super) fn taken(&self) -> usize {
        self.calls + self.reserved.calls
    }

    /// Attempts that are about to begin, as calls: slots kept for a claim under way, and those whose rows are being written.
    #[must_use]
    pub fn beginning(&self) -> usize {
        self.reserved.calls + self.recording
    }

    /// Starts what has been read, as far as slots are free, at most so many calls.
    pub fn start(&mut self, most: usize, now: Instant, steps: &mut Vec<Step>) {
        let until = self.taken().saturating_add(most).min(self.config.concurrency);
        while self.taken() < until && self.may_begin_another(now) {
            let Some(batch) = self.config.batch else {
                let Some(ticket) = self.take_queued(now) else { break };
                self.begin(ticket, now, steps);
                continue;
            };
            if !self.is_gathered(batch, now) {
                break;
            }
            let deliveries = self.take_batch(batch, now);
            self.begin_batch(&deliveries, now, steps);
        }
    }

    /// Whether the rate lets one more begin. What was claimed has been counted.
    fn may_begin_another(&mut self, now: Instant) -> bool {
        let counted = !self.due_queue.is_empty();
        counted || self.limit.as_mut().is_none_or(|limit| limit.there(now) > 0)
    }

    /// The one that goes next.
    fn first_queued(&self) -> Option<Ticket> {
        self.due_queue.front().or_else(|| self.queue.first_key_value()?.1.front()).copied()
    }

    fn take_queued(&mut self, now: Instant) -> Option<Ticket> {
        let ticket = self.due_queue.pop_front().or_else(|| {
            let mut first = self.queue.first_entry()?;
            let ticket = first.get_mut().pop_front();
            if first.get().is_empty() {
                first.remove();
            }
            self.due_had_last_turn = false;
            if let Some(limit) = &mut self.limit {
                limit.take(1, now);
            }
            ticket
        })?;
        self.unbegun -= 1;
        Some(ticket)
    }

    /// What goes into one call: of what was claimed, or of what is queued.
    pub(super) fn take_batch(&mut self, batch: BatchConfig, now: Instant) -> Vec<Ticket> {
        let (mut deliveries, mut most) = (Vec::new(), batch.max);
        let is_due = !self.due_queue.is_empty();
        while let Some(next) = self.first_queued().filter(|_| is_due != self.due_queue.is_empty()) {
            let failures = self.deliveries.get(&next).map_or(0, |delivery| delivery.failures);
            most = most.min(batch.max.checked_shr(failures).unwrap_or(0));
            if deliveries.len() >= most.max(1) || !self.may_begin_another(now) {
                break;
            }
            deliveries.extend(self.take_queued(now));
        }
        deliveries
    }

    /// Whether what waits begins as a batch now.
    fn is_gathered(&self, batch: BatchConfig, now: Instant) -> bool {
        let queued: usize = self.queue.values().map(VecDeque::len).sum();
        let is_full = queued > 0 && (queued >= batch.max || self.room() == 0);
        is_full || !self.due_queue.is_empty() || self.gathered_at(batch).is_some_and(|at| at <= now)
    }

    /// When the first of those that are queued has waited for company long enough.
    pub(super) fn gathered_at(&self, batch: BatchConfig) -> Option<Instant> {
        let first = |queued: &VecDeque<Ticket>| Some(self.deliveries.get(queued.front()?)?.since);
        self.queue.values().filter_map(first).min().map(|since| since + batch.wait)
    }

    /// When the oldest of those that could begin was created, as far as they are at the head of a queue, in µs since 1970.
    #[must_use]
    pub fn oldest(&self) -> Option<i64> {
        let first =
            |queued: &VecDeque<Ticket>| Some(self.deliveries.get(queued.front()?)?.event.created_at.as_microsecond());
        self.queue.values().chain([&self.due_queue]).filter_map(first).min()
    }

    /// Begins a call with this delivery, unless it has expired.
    pub(super) fn begin(&mut self, ticket: Ticket, now: Instant, steps: &mut Vec<Step>) {
        let Some(stage) = self.admit(ticket, None, now, steps) else { return };
        let Some(delivery) = self.deliveries.get_mut(&ticket) else { return };
        self.calls += 1;
        self.calls_due += usize::from(delivery.claimed && !delivery.parked);
        self.calls_parked += usize::from(delivery.parked);
        if stage == Stage::Recording {
            self.recording += 1;
        } else {
            steps.push(delivery.start(ticket, now, &self.of));
        }
    }

    /// Begins one call with these, as far as they have not expired.
    pub(super) fn begin_batch(&mut self, deliveries: &[Ticket], now: Instant, steps: &mut Vec<Step>) {
        let Some(id) = deliveries.first().map(|first| first.number) else { return };
        let mut batch =
            Batch { deliveries: Vec::new(), claimed: false, parked: false, left: 0, recording: 0, verdict: None };
        for &ticket in deliveries {
            if let Some(stage) = self.admit(ticket, Some(id), now, steps) {
                batch.deliveries.push(ticket);
                batch.left += 1;
                batch.recording += usize::from(stage == Stage::Recording);
            }
        }
        let Some(first) = batch.deliveries.first().and_then(|ticket| self.deliveries.get(ticket)) else { return };
        self.calls += 1;
        (batch.claimed, batch.parked) = (first.claimed, first.parked);
        self.calls_due += usize::from(batch.claimed && !batch.parked);
        self.calls_parked += usize::from(batch.parked);
        let records = batch.recording > 0;
        self.recording += usize::from(records);
        self.batches.insert(id, batch);
        if !records {
            self.start_batch(id, now, steps);
        }
    }

    /// Gives a delivery its place in a call, unless it has expired.
    fn admit(&mut self, ticket: Ticket, batch: Option<BatchId>, now: Instant, steps: &mut Vec<Step>) -> Option<Stage> {
        let key = self.current_key(ticket);
        let delivery = self.deliveries.get_mut(&ticket)?;
        if delivery.expires_at.is_some_and(|at| at <= now) {
            steps.extend(self.write(ticket, Ended::Expired, now));
            self.pass(key, now, steps);
            self.leave_place(ticket, now);
            return None;
        }
        // A claim has counted the attempt already.
        delivery.attempt += u32::from(!delivery.claimed);
        delivery.batch = batch;
        delivery.stage = Stage::Running;
        self.running += 1;
        if !delivery.claimed && (self.config.record == Record::Start || self.config.callback) {
            delivery.stage = Stage::Recording;
            self.record_one(ticket, now, steps);
            return Some(Stage::Recording);
        }
        if !delivery.claimed {
            self.began.push_back((now, ticket));
        }
        Some(Stage::Running)
    }

    /// The row of an attempt that waited for it is written.
    pub(super) fn may_begin(&mut self, ticket: Ticket, now: Instant, steps: &mut Vec<Step>) {
        let Some(delivery) = self.deliveries.get_mut(&ticket) else { return };
        match delivery.batch {
            None => {
                self.recording -= 1;
                steps.push(delivery.start(ticket, now, &self.of));
            }
            Some(id) => {
                delivery.stage = Stage::Running;
                self.recorded_in(id, now, steps);
            }
        }
    }

    /// One delivery of a batch less whose row is being written: with the last of them it begins.
    fn recorded_in(&mut self, id: BatchId, now: Instant, steps: &mut Vec<Step>) {
        let Some(batch) = self.batches.get_mut(&id) else { return };
        batch.recording -= 1;
        if batch.recording == 0 {
            self.recording -= 1;
            self.start_batch(id, now, steps);
        }
    }

    fn start_batch(&mut self, id: BatchId, now: Instant, steps: &mut Vec<Step>) {
        let Some(batch) = self.batches.get(&id) else { return };
        let mut starts = Vec::with_capacity(batch.left);
        for &ticket in &batch.deliveries {
            // One may have been cancelled while rows were written.
            if let Some(delivery) = self.deliveries.get_mut(&ticket).filter(|delivery| delivery.runs()) {
                starts.push(delivery.start_of(ticket, now, &self.of));
            }
        }
        if !starts.is_empty() {
            steps.push(Step::StartBatch(starts));
        }
    }

    /// What a call has said about its target, with this outcome of it as the last; `None`: others are to come.
    pub(super) fn verdict(&mut self, ticket: Ticket, outcome: &Outcome) -> Option<Result<(), Fault>> {
        let verdict = outcome.verdict();
        let batch = self.deliveries.get(&ticket).and_then(|delivery| delivery.batch);
        let Some(batch) = batch.and_then(|id| self.batches.get_mut(&id)) else { return Some(verdict) };
        let best = batch.verdict.map_or(verdict, |known| known.min(verdict));
        batch.verdict = Some(best);
        (batch.left == 1).then_some(best)
    }

    /// A delivery leaves its call; whether the call is over by that.
    pub(super) fn release_slot(&mut self, ticket: Ticket, now: Instant, steps: &mut Vec<Step>) -> bool {
        let Some(delivery) = self.deliveries.get_mut(&ticket).filter(|delivery| delivery.runs()) else { return false };
        let recorded = std::mem::replace(&mut delivery.stage, Stage::Ended) == Stage::Recording;
        let (mut claimed, mut parked, batch) = (delivery.claimed, delivery.parked, delivery.batch);
        self.running -= 1;
        match batch {
            None => self.recording -= usize::from(recorded),
            Some(id) => {
                if let Some(batch) = self.batches.get_mut(&id) {
                    batch.left -= 1;
                }
                if recorded {
                    self.recorded_in(id, now, steps);
                }
                if self.batches.get(&id).is_some_and(|batch| batch.left > 0) {
                    return false;
                }
                let batch = self.batches.remove(&id);
                (claimed, parked) = batch.map_or((false, false), |batch| (batch.claimed, batch.parked));
            }
        }
        self.calls -= 1;
        self.calls_due -= usize::from(claimed && !parked);
        self.calls_parked -= usize::from(parked);
        true
    }
}
