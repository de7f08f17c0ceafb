//! What a lane holds, is offered and asks for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::spans::{self, Begun, Queued};
use super::super::write::{Ticket, Write};
use super::call::BatchId;
use crate::event::{Event, EventId, KeyHash};
use crate::outcome::{Asked, Fault, Settlement};
use crate::store::log::Logged;
use crate::trace::{Trace, TraceId, Traced};

/// One delivery the lane holds.
#[expect(clippy::struct_excessive_bools, reason = "each is asked by itself, and they do not exclude each other")]
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) event: Arc<Event>,
    /// The window of the log it was read in; `None` for a delivery from `outbox.open`, or once a row keeps it.
    pub(super) window: Option<u64>,
    pub(super) priority: i16,
    pub(super) attempt: u32,
    pub(super) failures: u32,
    /// How often it was asked, and until when it must answer.
    pub(super) polls: u32,
    pub(super) answer_by: Option<Instant>,
    pub(super) has_row: bool,
    /// Its key, if the lane looks at keys.
    pub(super) key: Option<KeyHash>,
    /// A row that holds its key is being written.
    pub(super) writes_row: bool,
    /// Came from `outbox.open`.
    pub(super) claimed: bool,
    /// It did because its key had a place, not because it was due.
    pub(super) parked: bool,
    pub(super) expires_at: Option<Instant>,
    /// Of a step: the results before it.
    pub(super) results: Option<Arc<Value>>,
    /// Of a flow: steps have ended before this term.
    pub(super) begun: bool,
    pub(super) began: Option<Instant>,
    /// When it came here.
    pub(super) since: Instant,
    /// When it was due, if it came from `outbox.open`.
    pub(super) due_at: Option<Instant>,
    /// Its event's, or the one that begins with that if spans are exported.
    pub(super) trace: Option<Trace>,
    /// Where the spans of its attempt belong.
    pub(super) own_trace: Option<Trace>,
    /// The batch it was handed over in.
    pub(super) batch: Option<BatchId>,
    pub(super) stage: Stage,
}

/// What a delivery must know of its lane to begin.
#[derive(Debug)]
pub(super) struct OfLane {
    pub(super) handler: Arc<str>,
    /// Spans are exported.
    pub(super) traced: Option<Traced>,
}

/// How far a delivery is in the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits, or is only written down.
    Unbegun,
    /// It has a slot, and begins when its row is written.
    Recording,
    Running,
    /// Its outcome is being written.
    Ended,
}

/// An attempt to start.
#[derive(Debug)]
pub struct Start {
    pub ticket: Ticket,
    pub event: Arc<Event>,
    pub attempt: u32,
    pub has_row: bool,
    /// Of a step: the results before it.
    pub results: Option<Arc<Value>>,
    /// Of a flow: steps have ended before this term.
    pub begun: bool,
    pub began: Instant,
    /// Below which span it does its work.
    pub trace: Option<Trace>,
}

/// How an attempt was settled, for whoever tells of it.
#[derive(Debug)]
pub struct EndedAttempt {
    pub event: EventId,
    pub trace: Option<TraceId>,
    pub attempt: u32,
    /// `None`: nothing ran.
    pub began: Option<Instant>,
    /// What the call says about the target; `None`: other deliveries of its batch have not ended.
    pub verdict: Option<Result<(), Fault>>,
    pub settlement: Settlement,
}

/// What a lane wants done.
#[derive(Debug)]
pub enum Step {
    Start(Start),
    /// In one call.
    StartBatch(Vec<Start>),
    Write(Write),
    /// The instance of a flow has lasted: it is to go on with rows.
    Lasts(Ticket),
    /// A step that was passed on has not begun, and is here no more.
    Withdrawn(Ticket),
}

impl Delivery {
    /// Neither begun nor written.
    pub(super) fn unbegun(event: Arc<Event>, since: Instant) -> Self {
        Self {
            trace: Trace::of_headers(&event.headers),
            own_trace: None,
            due_at: None,
            event,
            window: None,
            priority: 0,
            attempt: 0,
            failures: 0,
            polls: 0,
            answer_by: None,
            has_row: false,
            key: None,
            writes_row: false,
            claimed: false,
            parked: false,
            expires_at: None,
            results: None,
            begun: false,
            began: None,
            since,
            batch: None,
            stage: Stage::Unbegun,
        }
    }

    pub(super) fn asked(&self, now: Instant) -> Asked {
        let left = self.answer_by.map(|at| at.saturating_duration_since(now));
        Asked { polls: self.polls, left }
    }

    /// The key whose attempts are counted, its own among them.
    pub(super) fn counted(&self) -> Option<&str> {
        self.key.and(self.event.key.as_deref())
    }

    /// Whether it has neither begun nor been written.
    pub(super) fn waits(&self) -> bool {
        self.stage == Stage::Unbegun
    }

    /// Whether nobody knows of it yet: it has neither begun nor a row.
    pub(super) fn is_free(&self) -> bool {
        self.waits() && !self.has_row
    }

    /// Whether it has a slot.
    pub(super) fn runs(&self) -> bool {
        matches!(self.stage, Stage::Recording | Stage::Running)
    }

    /// What is told of its attempt when that is settled.
    pub(super) fn begun(&self, traced: Traced, handler: &str) -> Option<Box<Begun>> {
        let queued = self.due_at.map_or(Queued::Created(self.event.created_at), Queued::Due);
        Begun::new(traced, self.trace?, &self.event, handler, queued).map(Box::new)
    }

    pub(super) fn start(&mut self, ticket: Ticket, began: Instant, of: &OfLane) -> Step {
        Step::Start(self.start_of(ticket, began, of))
    }

    pub(super) fn start_of(&mut self, ticket: Ticket, began: Instant, of: &OfLane) -> Start {
        self.began = Some(began);
        self.stage = Stage::Running;
        self.own_trace = of
            .traced
            .zip(self.trace)
            .and_then(|(traced, trace)| spans::own(traced, trace, &self.event, &of.handler, self.attempt));
        let (event, results) = (Arc::clone(&self.event), self.results.clone());
        let (attempt, has_row, begun) = (self.attempt, self.has_row, self.begun);
        Start { ticket, event, attempt, has_row, results, begun, began, trace: self.own_trace }
    }
}

/// What a lane needs to know of a logged event beside the event.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    pub priority: i16,
    pub due_in: Option<Duration>,
    pub expires_in: Option<Duration>,
    /// Of a flow: steps have ended before this term.
    pub begun: bool,
}

impl From<&Logged> for Offer {
    fn from(logged: &Logged) -> Self {
        Self { priority: logged.priority, due_in: logged.due_in, expires_in: logged.expires_in, begun: false }
    }
}
