//! What keys mean for deliveries: who begins next, and who gets a row. [`Keys`](super::keys::Keys) says it where their order is kept,
//! [`Places`] where so many of each run at the same time.

use std::time::{Duration, Instant};

use super::super::write::{Ended, Ticket};
use super::delivery::Delivery;
use super::keys::{Next, Waiting};
use super::{Lane, Places, Step, Turn};
use crate::event::{Event, KeyHash};

impl Lane {
    /// What stands for an event's key, if the lane looks at keys.
    pub(super) fn key_of(&self, event: &Event) -> Option<KeyHash> {
        let looks = self.keys.is_some() || self.places.is_some();
        event.key.as_deref().filter(|_| looks).map(KeyHash::of)
    }

    /// Whether a delivery that was read goes now.
    pub(super) fn turn(&mut self, ticket: Ticket, key: Option<KeyHash>) -> Turn {
        let Some(key) = key else { return Turn::Now };
        if let Some(keys) = &mut self.keys {
            return keys.offer(key, ticket);
        }
        let event = self.deliveries.get(&ticket).map(|delivery| &delivery.event);
        let (Some(places), Some(event)) = (&mut self.places, event) else { return Turn::Now };
        places.offer(event.key.as_deref().unwrap_or_default(), ticket, event.weight())
    }

    /// One that had a place does not go any more, or has ended: the next of its key may.
    pub(super) fn leave_place(&mut self, ticket: Ticket, now: Instant) {
        let key = self.deliveries.get(&ticket).and_then(Delivery::counted);
        let (Some(places), Some(key)) = (&mut self.places, key) else { return };
        match places.free(key) {
            Some(next) => {
                self.unbegun -= 1;
                self.enqueue_again(next);
            }
            None => self.claim_ready(now),
        }
    }

    /// One that was claimed because it is due takes a place, or goes back; whether it goes.
    pub(super) fn take_place(&mut self, ticket: Ticket, now: Instant, steps: &mut Vec<Step>) -> bool {
        let (Some(places), Some(delivery)) = (&mut self.places, self.deliveries.get_mut(&ticket)) else { return true };
        let Some(key) = delivery.counted() else { return true };
        if places.take(key) {
            return true;
        }
        places.put_back(key);
        delivery.writes_row = true;
        steps.extend(self.write(ticket, Ended::PutBack, now));
        false
    }

    /// A row that waits for its key is committed.
    pub(super) fn wrote(&mut self, key: KeyHash, event: &Event, now: Instant) {
        if let Some(keys) = &mut self.keys {
            keys.wrote(key);
        }
        if let Some(places) = &mut self.places {
            places.wrote(event.key.as_deref().unwrap_or_default());
            self.claim_ready(now);
        }
    }

    /// Rows that have a place now are claimed as soon as there is a slot.
    pub(super) fn claim_ready(&mut self, now: Instant) {
        if self.places.as_ref().is_some_and(Places::has_ready) {
            self.ready_at = Some(self.ready_at.map_or(now, |at| at.min(now)));
        }
    }

    /// A running attempt gets a row, and so do those behind it.
    pub(super) fn record_one(&mut self, ticket: Ticket, now: Instant, steps: &mut Vec<Step>) {
        steps.extend(self.write(ticket, Ended::StillRunning, now));
        let key = self.current_key(ticket);
        if let Some(delivery) = self.deliveries.get_mut(&ticket) {
            delivery.has_row = true;
            delivery.writes_row = key.is_some();
        }
        if let (Some(keys), Some(key)) = (&mut self.keys, key) {
            for behind in keys.recorded(key) {
                self.unbegun -= 1;
                self.block(behind, now, steps);
            }
        }
    }

    /// One that waits in memory takes the place of those of its key that have not begun, if they are merged.
    pub(super) fn merge_into(&mut self, ticket: Ticket, now: Instant, steps: &mut Vec<Step>) {
        let into = self.deliveries.get(&ticket).filter(|_| self.config.coalesce);
        let Some((key, into)) = into.and_then(|delivery| Some((delivery.key?, delivery.event.id))) else { return };
        let Some(keys) = &mut self.keys else { return };
        let (current, waiting) = keys.before(key, ticket);
        for before in waiting {
            self.unbegun -= 1;
            steps.extend(self.write(before, Ended::Merged { into }, now));
        }
        // It takes the place in the queue, too: a key that changes all the time must come to its turn.
        if let Some(current) = current.filter(|current| self.deliveries.get(current).is_some_and(Delivery::is_free))
            && let Some(place) = self.queue.values_mut().flatten().find(|queued| **queued == current)
        {
            *place = ticket;
            self.unbegun -= 1;
            if let Some(keys) = &mut self.keys {
                keys.take_over(key, ticket);
            }
            let since = self.deliveries.get(&current).map(|delivery| delivery.since);
            if let (Some(since), Some(delivery)) = (since, self.deliveries.get_mut(&ticket)) {
                delivery.since = since;
            }
            steps.extend(self.write(current, Ended::Merged { into }, now));
        }
    }

    /// The key of a delivery whose turn it is.
    pub(super) fn current_key(&self, ticket: Ticket) -> Option<KeyHash> {
        let key = self.deliveries.get(&ticket)?.key?;
        self.keys.as_ref()?.is_current(key, ticket).then_some(key)
    }

    /// The key stays with a row: nobody behind it begins, and who has no row gets one.
    pub(super) fn hold(&mut self, key: Option<KeyHash>, now: Instant, steps: &mut Vec<Step>) {
        let (Some(keys), Some(key)) = (&mut self.keys, key) else { return };
        for Waiting { ticket, has_row } in keys.held(key) {
            if has_row {
                steps.extend(self.write(ticket, Ended::PutBack, now));
            } else {
                self.unbegun -= 1;
                self.block(ticket, now, steps);
            }
        }
    }

    /// The key is free for the next one.
    pub(super) fn pass(&mut self, key: Option<KeyHash>, now: Instant, steps: &mut Vec<Step>) {
        let (Some(keys), Some(key)) = (&mut self.keys, key) else { return };
        let (next, blocked) = keys.passed(key);
        for ticket in blocked {
            self.unbegun -= 1;
            self.block(ticket, now, steps);
        }
        match next {
            Next::Goes(Waiting { ticket, has_row }) => {
                self.unbegun -= usize::from(!has_row);
                self.enqueue_again(ticket);
            }
            Next::IsClaimed => self.due_within(Duration::ZERO, now),
            Next::Nobody => {}
        }
    }

    /// Written down behind the others of its key.
    pub(super) fn block(&mut self, ticket: Ticket, now: Instant, steps: &mut Vec<Step>) {
        if let Some(delivery) = self.deliveries.get_mut(&ticket) {
            delivery.writes_row = true;
        }
        steps.extend(self.write(ticket, Ended::Blocked, now));
        if self.keys.is_some() {
            // If nobody is before it any more, it is due as soon as it is written.
            self.due_within(Duration::ZERO, now);
        }
    }

    /// One that waited for its key goes into the queue.
    pub(super) fn enqueue_again(&mut self, ticket: Ticket) {
        let priority = self.deliveries.get(&ticket).map_or(0, |delivery| delivery.priority);
        self.enqueue(ticket, priority);
    }
}
