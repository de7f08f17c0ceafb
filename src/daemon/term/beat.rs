//! What running attempts say is passed on once they have a row.

use std::collections::HashMap;

use super::super::beat::{Beats, News, Recorded};
use super::super::settle::Request;
use super::super::write::Ticket;
use super::Term;
use crate::event::Heartbeat;

/// The newest heartbeat of each attempt that has no row yet, or has just said something; at most one for each that runs.
pub(super) type Said = HashMap<Ticket, Heartbeat>;

impl Term<'_> {
    pub(super) fn news(&mut self, news: News<Ticket>) {
        match news {
            News::Said(ticket, heartbeat) => {
                self.said.insert(ticket, heartbeat);
            }
            // Without a row nobody can have heard of it: the question is dropped, and that is the answer.
            News::Silent(ticket, answer) => {
                if let Some(of) = self.recorded(ticket) {
                    self.request(Request::Beats(Beats { silent: vec![(of, answer)], ..Beats::default() }));
                }
            }
        }
    }

    /// Asks for the heartbeats to be written of those attempts that have a row.
    pub(super) fn pass_on(&mut self) {
        if self.said.is_empty() {
            return;
        }
        let mut beats = Beats::default();
        for (ticket, heartbeat) in std::mem::take(&mut self.said) {
            match self.recorded(ticket) {
                Some(of) => {
                    beats.said.insert(of, heartbeat);
                }
                None if self.slots.get(&ticket.lane).is_some_and(|slot| slot.lane.runs(ticket)) => {
                    self.said.insert(ticket, heartbeat);
                }
                // It has ended.
                None => {}
            }
        }
        if !beats.is_empty() {
            self.request(Request::Beats(beats));
        }
    }

    fn recorded(&self, ticket: Ticket) -> Option<Recorded> {
        let slot = self.slots.get(&ticket.lane)?;
        let (event, attempt) = slot.lane.recorded(ticket)?;
        Some(Recorded { event, handler: slot.spec.name.clone(), attempt })
    }
}
