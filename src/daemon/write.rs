//! What a lane asks to be written, and how it is told that it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::spans::Begun;
use crate::event::EventId;
use crate::outcome::{Asked, Settlement, failed_as};
use crate::trace::TraceId;

/// Names a lane within a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u32);

/// Names a delivery and the lane that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    pub lane: LaneId,
    pub number: u64,
}

/// One thing to write for one delivery.
#[derive(Debug, Clone)]
pub struct Write {
    /// Comes back when it is written.
    pub ticket: Ticket,
    pub event: EventId,
    pub trace: Option<TraceId>,
    pub handler: Arc<str>,
    /// The last attempt that began, 0 if none has.
    pub attempt: u32,
    /// The failures before it.
    pub failures: u32,
    /// How often it has answered "not yet", and what is left of its time, as of `at`.
    pub asked: Asked,
    /// Whether there is a running row that names the attempt.
    pub has_row: bool,
    pub began: Option<Instant>,
    /// Of a step: the results before it.
    pub results: Option<Arc<Value>>,
    pub at: Instant,
    pub ended: Ended,
    /// What is told of its attempt, if that has ended and its trace wants to know.
    pub spans: Option<Box<Begun>>,
}

/// What happened to the delivery.
#[derive(Debug, Clone)]
pub enum Ended {
    /// Its attempt ended.
    Settled(Settlement),
    /// It is not due yet.
    Scheduled { due_in: Duration },
    /// It waits behind an earlier delivery of its key.
    Blocked,
    /// Its attempt was claimed and has not begun: it waits behind another one of its key again.
    PutBack,
    /// It expired before it ran.
    Expired,
    /// A later one of its key does its work.
    Merged { into: EventId },
    /// Its attempt has not ended and gets a row.
    StillRunning,
    /// It is an instance of a flow, of which nothing runs here any more: it goes on with rows.
    Stands,
    /// Its attempt was cut off by the daemon's stop, or has not even begun before it.
    CutOff,
    /// Its attempt was ended because somebody has cancelled the delivery, which is written.
    Cancelled,
}

/// What became of a [`Write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The attempt still runs, and has a row now.
    Recorded,
    /// The delivery needs this lane no more; `finished` when it has an outcome for good.
    Ended { finished: bool },
    /// It was not written: somebody else has finished the delivery, or taken the attempt away.
    Refused,
}

impl Ended {
    /// Whether it is the end of an attempt, if one ran.
    #[must_use]
    pub fn ends_attempt(&self) -> bool {
        matches!(self, Self::Settled(_) | Self::CutOff | Self::Cancelled)
    }

    /// How the attempt ended, as in `outbox.attempt`, and its error.
    #[must_use]
    pub fn outcome(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Settled(Settlement::Done { .. } | Settlement::Committed { .. }) => ("done", None),
            Self::Settled(Settlement::Retry { failure, spent, .. }) => (failed_as(*spent), Some(&failure.error)),
            Self::Settled(Settlement::Snooze { .. }) => ("snooze", None),
            Self::Settled(Settlement::Wait { .. }) => ("wait", None),
            Self::Settled(Settlement::Pause { failure }) => ("paused", Some(&failure.error)),
            Self::Settled(Settlement::Dead { failure }) => ("dead", Some(&failure.error)),
            Self::Settled(Settlement::Lost) => ("lost", Some("somebody else had settled the delivery")),
            Self::Cancelled => ("cancelled", Some("cancelled by hand")),
            _ => ("lost", Some("the daemon stopped before it had ended")),
        }
    }

    /// Whether the delivery gets a row in `outbox.done`, and one that it has in `outbox.open` goes.
    #[must_use]
    pub fn finishes(&self) -> bool {
        matches!(self, Self::Settled(Settlement::Done { .. }) | Self::Expired | Self::Merged { .. })
    }

    /// What becomes of the delivery when this is refused.
    #[must_use]
    pub fn refused(&self) -> Fate {
        match self {
            // It runs all the same, and its end will be refused.
            Self::StillRunning => Fate::Recorded,
            _ => Fate::Refused,
        }
    }

    /// What becomes of the delivery when this is written.
    #[must_use]
    pub fn fate(&self) -> Fate {
        match self {
            Self::StillRunning => Fate::Recorded,
            Self::Settled(Settlement::Done { .. } | Settlement::Committed { .. })
            | Self::Expired
            | Self::Merged { .. }
            | Self::Cancelled => Fate::Ended { finished: true },
            Self::Settled(_) | Self::Scheduled { .. } | Self::Blocked | Self::PutBack | Self::Stands | Self::CutOff => {
                Fate::Ended { finished: false }
            }
        }
    }
}
