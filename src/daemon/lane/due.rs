//! What a lane takes from `outbox.open`: how many slots and when, and what becomes of what was claimed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::write::Ticket;
use super::delivery::{Delivery, EndedAttempt, Step};
use super::places::Places;
use super::{Lane, Rate, Reserved};
use crate::outcome::{Failure, Outcome};
use crate::store::settle::{Claimed, Found, Parked, Wanted};

/// Before a due delivery whose row somebody else has locked is looked at again.
const LOCKED_PAUSE: Duration = Duration::from_millis(50);

/// What becomes of a delivery that was claimed.
enum Taken {
    Goes(Ticket),
    /// Behind another one of its key.
    Waits,
    /// As many of its key as may run do.
    GoesBack,
    /// Nothing runs: it waited for an answer that did not come.
    Ended(Option<EndedAttempt>),
}

impl Lane {
    /// What to claim now, for at most so many calls. The answer must come by [`Self::claimed`].
    pub fn claim(&mut self, most: usize, now: Instant) -> Wanted {
        let (due, ready) = (self.due_at.is_some_and(|at| at <= now), self.ready_at.is_some_and(|at| at <= now));
        let due = due && !self.places.as_ref().is_some_and(Places::is_full);
        if self.reserved.calls > 0 || !self.due_queue.is_empty() || !(due || ready) {
            return self.wanted(0, Vec::new());
        }
        let free = self.config.concurrency.saturating_sub(self.calls).min(most);
        let calls = free.min(self.share_left());
        // One batch at a time: so many rows, and no more, come with an answer.
        let wanted = self.config.batch.map_or(calls, |batch| if calls > 0 { batch.max } else { 0 });
        let wanted = self.limit.as_mut().map_or(wanted, |limit| wanted.min(limit.there(now)));
        let parked = if ready { self.ask_for_parked(wanted, due) } else { Vec::new() };
        let of_parked: usize = parked.iter().map(|&(_, rows)| rows).sum();
        let due = if due { self.may_run_again(wanted - of_parked, now) } else { 0 };
        if due > 0 {
            // What becomes due while the claim is under way must not be forgotten: the answer does not know it.
            self.due_at = None;
        }
        let deliveries = of_parked + due;
        if let Some(limit) = &mut self.limit {
            limit.take(deliveries, now);
        }
        let calls = if self.config.batch.is_some() { deliveries.min(1) } else { deliveries };
        self.reserved = Reserved { calls, deliveries, due };
        self.wanted(due, parked)
    }

    /// Calls that what comes from `outbox.open` may still have.
    fn share_left(&self) -> usize {
        let share = if self.queue.is_empty() {
            self.config.concurrency
        } else if self.config.concurrency == 1 && self.due_had_last_turn {
            0
        } else {
            // While first tries wait, a quarter of the slots, but never none, is for what is due.
            (self.config.concurrency / 4).max(1)
        };
        share.saturating_sub(self.calls_due + self.calls_parked)
    }

    fn wanted(&self, due: usize, parked: Vec<(Arc<str>, usize)>) -> Wanted {
        Wanted { handler: Arc::clone(&self.of.handler), due, parked }
    }

    /// Rows whose key has a place. If something is due as well, half of what can be claimed is for each, and a single one in turns.
    fn ask_for_parked(&mut self, deliveries: usize, due: bool) -> Vec<(Arc<str>, usize)> {
        let most = match deliveries {
            0 => return Vec::new(),
            1 if due && self.parked_had_last_turn => 0,
            _ if due => deliveries.div_ceil(2),
            _ => deliveries,
        };
        self.parked_had_last_turn = most > 0;
        let Some(places) = self.places.as_mut().filter(|_| most > 0) else { return Vec::new() };
        self.ready_at = None;
        places.ask(most)
    }

    /// Of so many that are due, those that the limits of retries let begin; they are counted by that.
    fn may_run_again(&mut self, deliveries: usize, now: Instant) -> usize {
        let calls = self.config.retry.concurrency.map_or(usize::MAX, |most| most.saturating_sub(self.calls_due));
        let most = self.config.batch.map_or(calls, |_| if calls > 0 { usize::MAX } else { 0 });
        let deliveries = deliveries.min(most);
        self.rate.as_mut().map_or(deliveries, |rate| rate.take(deliveries, now))
    }

    /// The answer to a claim: what has been started in the database, and when the next one is due. Returns the attempts that
    /// ended by that: a wait for an answer that did not come.
    pub fn claimed(&mut self, found: Found, now: Instant, random: f64, steps: &mut Vec<Step>) -> Vec<EndedAttempt> {
        let Found { claimed, parked, due_in } = found;
        let reserved = std::mem::take(&mut self.reserved);
        let (all, due) = (claimed.len(), claimed.iter().filter(|claimed| !claimed.parked).count());
        self.due_again(reserved.due.saturating_sub(due), due_in, &parked, now);
        let (mut ended, mut back) = (Vec::new(), 0);
        for claimed in claimed {
            match self.claimed_one(claimed, now, random, steps) {
                Taken::Goes(ticket) if self.config.batch.is_some() => {
                    self.unbegun += 1;
                    self.due_queue.push_back(ticket);
                }
                Taken::Goes(ticket) => self.begin(ticket, now, steps),
                Taken::Waits => {}
                Taken::GoesBack => back += 1,
                Taken::Ended(attempt) => ended.extend(attempt),
            }
        }
        // What was counted and does not begin.
        if let Some(limit) = &mut self.limit {
            limit.give_back(reserved.deliveries.saturating_sub(all) + back);
        }
        if let Some(rate) = &mut self.rate {
            rate.give_back(reserved.due.saturating_sub(due) + back);
        }
        // One call was kept for them; what does not fit into it waits for another.
        if let Some(batch) = self.config.batch.filter(|_| !self.due_queue.is_empty()) {
            let deliveries = self.take_batch(batch, now);
            self.begin_batch(&deliveries, now, steps);
        }
        ended
    }

    /// When there is something to claim again, after a claim that found so many less than it could have taken.
    fn due_again(&mut self, unused: usize, due_in: Option<Duration>, parked: &[Parked], now: Instant) {
        // One that is there and was not claimed although there was a slot is locked by somebody; no hurry then.
        if let Some(due_in) = due_in {
            let locked = unused > 0 && due_in == Duration::ZERO;
            self.due_within(if locked { LOCKED_PAUSE } else { due_in }, now);
        }
        let Some(places) = &mut self.places else { return };
        places.claimed(parked);
        if parked.iter().any(|parked| parked.left && parked.claimed == 0) {
            self.ready_at = Some(now + LOCKED_PAUSE);
        } else {
            self.claim_ready(now);
        }
    }

    fn claimed_one(&mut self, claimed: Claimed, now: Instant, random: f64, steps: &mut Vec<Step>) -> Taken {
        let Claimed {
            event,
            attempt,
            failures,
            polls,
            answer_in,
            expires_in,
            results,
            unanswered,
            alone,
            parked,
            overdue,
            ..
        } = claimed;
        // What does not run needs no place.
        let key = self.key_of(&event).filter(|_| !unanswered || self.keys.is_some());
        let ticket = self.insert(Delivery {
            attempt,
            failures,
            // One that is given up begins anew.
            polls: if unanswered { 0 } else { polls },
            answer_by: answer_in.filter(|_| !unanswered).map(|left| now + left),
            has_row: true,
            key,
            claimed: true,
            parked,
            expires_at: expires_in.map(|left| now + left),
            results: results.map(Arc::new),
            due_at: now.checked_sub(overdue),
            ..Delivery::unbegun(Arc::new(event), now)
        });
        let mut goes = true;
        if let (Some(keys), Some(key)) = (&mut self.keys, key) {
            let (now_it_is_its_turn, blocked) = keys.claimed(key, ticket, alone);
            goes = now_it_is_its_turn;
            for behind in blocked {
                self.unbegun -= 1;
                self.block(behind, now, steps);
            }
        }
        if unanswered {
            let failure = Failure::new("no answer came within the time");
            let outcome = Outcome::Retry { after: None, failure };
            return Taken::Ended(self.ended(ticket, outcome, None, now, random, steps));
        }
        if !parked && !self.take_place(ticket, now, steps) {
            return Taken::GoesBack;
        }
        self.due_had_last_turn = true;
        if goes { Taken::Goes(ticket) } else { Taken::Waits }
    }

    /// Something in `outbox.open` may have become due.
    pub fn due_within(&mut self, due_in: Duration, now: Instant) {
        let at = now + due_in;
        self.due_at = Some(self.due_at.map_or(at, |known| known.min(at)));
    }

    /// When a claim may find something, as far as slots allow one. With none free, the end of an attempt is what to wait for.
    pub(super) fn due_at(&self) -> Option<Instant> {
        let has_slot = self.reserved.calls == 0
            && self.due_queue.is_empty()
            && self.calls < self.config.concurrency
            && self.share_left() > 0;
        let run_again = self.config.retry.concurrency.is_none_or(|most| self.calls_due < most)
            && !self.places.as_ref().is_some_and(Places::is_full);
        let not_before = |at: Instant, rate: &Option<Rate>| rate.as_ref().map_or(at, |rate| at.max(rate.next()));
        let due = self.due_at.filter(|_| run_again).map(|at| not_before(at, &self.rate));
        let at = due.into_iter().chain(self.ready_at).min().filter(|_| has_slot)?;
        Some(not_before(at, &self.limit))
    }
}
