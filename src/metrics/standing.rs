//! How a handler stands: what the daemon shows of it, what the database adds, and what somebody who watches it gets.

use std::sync::Arc;

/// The states of rows in `outbox.open`.
pub const OPEN_STATES: [&str; 6] = ["scheduled", "retrying", "running", "waiting", "blocked", "dead"];

/// What the daemon knows of a handler at this moment.
#[derive(Debug, Default)]
pub struct Shown {
    pub running: usize,
    /// Read, and not begun.
    pub queued: usize,
    /// When the oldest of these was created, in µs since 1970.
    pub oldest: Option<i64>,
    /// The newest id that was read for it, if there are more.
    pub read_to: Option<i64>,
    /// Transactions between its position and what was read for all.
    pub behind: u64,
    pub broken: bool,
    pub paused: bool,
}

/// What the database knows of a handler.
#[derive(Debug)]
pub struct Stored {
    pub handler: String,
    /// Rows by state, in the order of [`OPEN_STATES`], counted up to 10,000.
    pub open: [i64; OPEN_STATES.len()],
    /// For how many seconds the first that is due has been so.
    pub overdue: Option<f64>,
}

/// How a handler stands, for whoever watches it.
#[derive(Debug)]
pub struct Standing {
    pub handler: Arc<str>,
    pub dead: f64,
    /// Deliveries that wait: read, unread, or to run again.
    pub backlog: f64,
    /// For how many seconds the oldest of them has waited that could begin.
    pub oldest: f64,
    pub broken: bool,
}

/// The pool of sessions for SQL handlers.
#[derive(Debug, Clone, Copy)]
pub struct PoolUse {
    pub used: usize,
    pub idle: usize,
    /// Attempts that wait for one.
    pub waiting: usize,
}
