//! What is taken away from a lane before its attempt has ended: by the daemon's stop, a handler that leaves, or a cancellation.

use std::time::Instant;

use super::super::write::{Ended, Ticket};
use super::delivery::Delivery;
use super::keys::Keys;
use super::places::Places;
use super::{Lane, Step};
use crate::event::EventId;

impl Lane {
    /// Everything that runs and has a row is given back, for the next leader to run at once.
    pub fn release(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let held: Vec<Ticket> =
            self.deliveries.iter().filter(|(_, d)| d.runs() && d.has_row).map(|(&ticket, _)| ticket).collect();
        for ticket in held {
            // Nothing begins any more, not even what is left of a batch.
            self.release_slot(ticket, now, &mut Vec::new());
            steps.extend(self.write(ticket, Ended::CutOff, now));
        }
    }

    /// Forgets what was read and has not begun: the position does not pass it, so it is read again by the next leader. What was
    /// claimed and waits for its key goes back.
    pub fn drop_queue(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let queued: Vec<Ticket> = std::mem::take(&mut self.queue).into_values().flatten().collect();
        let behind = self.keys.as_mut().map(Keys::drain).unwrap_or_default();
        let waiting = self.places.as_mut().map(Places::drain).unwrap_or_default();
        self.unbegun = 0;
        for ticket in std::mem::take(&mut self.due_queue) {
            steps.extend(self.write(ticket, Ended::CutOff, now));
        }
        for ticket in queued.into_iter().chain(behind.into_iter().map(|waiting| waiting.ticket)).chain(waiting) {
            if self.deliveries.get(&ticket).is_some_and(|delivery| delivery.has_row) {
                steps.extend(self.write(ticket, Ended::PutBack, now));
            } else if self.remove(ticket).is_some_and(|delivery| delivery.results.is_some()) {
                steps.push(Step::Withdrawn(ticket));
            }
        }
    }

    /// Deliveries of this event were cancelled, which is written already: nothing of them begins any more. Returns the attempts
    /// that must be ended, and when the call began that is over by that.
    pub fn cancel(&mut self, event: EventId, now: Instant, steps: &mut Vec<Step>) -> Vec<(Ticket, Option<Instant>)> {
        let of_event = |(_, delivery): &(&Ticket, &Delivery)| delivery.event.id == event;
        let tickets: Vec<Ticket> = self.deliveries.iter().filter(of_event).map(|(&ticket, _)| ticket).collect();
        let mut running = Vec::new();
        for ticket in tickets {
            let key = self.current_key(ticket);
            if let Some(began) = self.deliveries.get(&ticket).filter(|d| d.runs()).map(|d| d.began) {
                let is_over = self.release_slot(ticket, now, steps);
                self.leave_place(ticket, now);
                running.push((ticket, began.filter(|_| is_over)));
                steps.extend(self.write(ticket, Ended::Cancelled, now));
            } else if self.unqueue(ticket, now) {
                let window = self.remove(ticket).and_then(|delivery| delivery.window);
                if let Some(window) = window {
                    self.windows.settled(window);
                }
            } else {
                // Its outcome is being written, and will be refused.
                continue;
            }
            self.pass(key, now, steps);
        }
        running
    }

    /// Takes a delivery out of where it waits for its turn; whether it did.
    pub(super) fn unqueue(&mut self, ticket: Ticket, now: Instant) -> bool {
        let Some(delivery) = self.deliveries.get(&ticket) else { return false };
        if let (Some(keys), Some(key)) = (&mut self.keys, delivery.key)
            && keys.withdraw(key, ticket)
        {
            self.unbegun -= usize::from(!delivery.has_row);
            return true;
        }
        if let (Some(places), Some(key)) = (&mut self.places, delivery.counted())
            && places.withdraw(key, ticket)
        {
            self.unbegun -= 1;
            return true;
        }
        let removed = self.queue.values_mut().chain([&mut self.due_queue]).any(|waiting| {
            let place = waiting.iter().position(|&queued| queued == ticket);
            place.and_then(|place| waiting.remove(place)).is_some()
        });
        if removed {
            self.unbegun -= 1;
            self.queue.retain(|_, waiting| !waiting.is_empty());
            self.leave_place(ticket, now);
        }
        removed
    }
}
