//! What a lane does for a flow: one that runs a flow begins instances, one of a step takes what the flow passes on.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::super::write::{Ended, Ticket};
use super::delivery::Delivery;
use super::{Lane, RECORD_AFTER, Step};
use crate::event::{Event, EventId};

impl Lane {
    /// The same lane, which runs a flow.
    #[must_use]
    pub fn of_flow(mut self) -> Self {
        self.is_flow = true;
        self
    }

    /// Takes a step that may begin, with the results before it. It has no place in the log: the flow's delivery has. `None`: as many
    /// of its key as may run do, and it has to wait with a row.
    pub fn pass_on(&mut self, event: &Arc<Event>, results: Arc<Value>, now: Instant) -> Option<Ticket> {
        let key = self.key_of(event);
        if let (Some(places), Some(key)) = (&mut self.places, event.key.as_deref())
            && !places.take(key)
        {
            return None;
        }
        let ticket = self.insert(Delivery { results: Some(results), key, ..Delivery::unbegun(Arc::clone(event), now) });
        self.enqueue(ticket, 0);
        self.passed_on.push_back((now, ticket));
        Some(ticket)
    }

    /// Gives steps back that have not begun for a second: with a row, they wait without holding up the flow's place in the log.
    pub fn give_back(&mut self, now: Instant, steps: &mut Vec<Step>) {
        while let Some(&(since, ticket)) = self.passed_on.front() {
            let waits = self.deliveries.get(&ticket).is_some_and(Delivery::waits);
            if waits && now < since + RECORD_AFTER {
                break;
            }
            self.passed_on.pop_front();
            if waits && self.unqueue(ticket, now) {
                self.remove(ticket);
                steps.push(Step::Withdrawn(ticket));
            }
        }
    }

    /// An instance goes on with rows.
    pub fn stands(&mut self, ticket: Ticket, now: Instant, steps: &mut Vec<Step>) {
        self.release_slot(ticket, now, steps);
        let key = self.current_key(ticket);
        if let Some(delivery) = self.deliveries.get_mut(&ticket) {
            delivery.writes_row = key.is_some() && !delivery.has_row;
        }
        steps.extend(self.write(ticket, Ended::Stands, now));
        self.hold(key, now, steps);
    }

    /// The delivery of this event that has a slot.
    #[must_use]
    pub fn running_of(&self, event: EventId) -> Option<Ticket> {
        self.deliveries
            .iter()
            .find(|(_, delivery)| delivery.event.id == event && delivery.runs())
            .map(|(&ticket, _)| ticket)
    }
}
