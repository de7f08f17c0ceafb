//! The order of keys in a lane: who of a key goes, who waits in memory, and who must wait in `outbox.open`.
//!
//! The rows of a key in `outbox.open` are always its oldest deliveries: one that has no row may wait in memory only while no
//! other delivery of its key has one. So what a crash leaves behind is read again behind what has a row, in order.
//!
//! Keys are known by a hash. Two keys with the same one wait for each other, which harms neither order nor result.
//! Pure, and bounded: see [`KEYS_MAX`].

use std::collections::{HashMap, VecDeque};

use super::super::write::Ticket;
use crate::event::KeyHash;

/// Keys that are known at most. With more, every delivery takes the way over `outbox.open`, which knows them all.
pub const KEYS_MAX: usize = 1_000_000;

/// The keys of one lane that somebody holds.
#[derive(Debug, Default)]
pub struct Keys {
    known: HashMap<KeyHash, Key>,
    /// There are more keys with rows than can be known.
    any_may_have_rows: bool,
}

#[derive(Debug, Default)]
struct Key {
    /// The delivery whose turn it is, queued or running.
    current: Option<Ticket>,
    /// It has a row.
    recorded: bool,
    waiting: VecDeque<Waiting>,
    /// Rows in `outbox.open` that hold the key: never too few, those included that are being written.
    rows: u32,
    writing: u32,
}

/// A delivery that waits in memory until it is its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    pub ticket: Ticket,
    pub has_row: bool,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The delivery goes.
    Now,
    /// It waits in memory.
    Later,
    /// It gets a row, behind others of its key.
    Blocked,
}

/// What the end of a current delivery means for those behind it.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// This one goes.
    Goes(Waiting),
    /// The next one has a row, if there is one, and is claimed.
    IsClaimed,
    Nobody,
}

impl Keys {
    /// With the keys of rows that were there before.
    #[must_use]
    pub fn new(rows: &[KeyHash]) -> Self {
        let mut keys = Self::default();
        for &key in rows {
            if keys.has_room(key) {
                keys.known.entry(key).or_default().rows += 1;
            }
        }
        keys
    }

    /// A delivery without a row wants to go.
    pub fn offer(&mut self, key: KeyHash, ticket: Ticket) -> Turn {
        if !self.has_room(key) {
            return Turn::Blocked;
        }
        let any_may_have_rows = self.any_may_have_rows;
        let entry = self.known.entry(key).or_default();
        let is_held = match entry.current {
            Some(_) => entry.recorded,
            None => entry.rows > 0 || any_may_have_rows,
        };
        if is_held {
            entry.block();
            Turn::Blocked
        } else if entry.current.is_some() {
            entry.waiting.push_back(Waiting { ticket, has_row: false });
            Turn::Later
        } else {
            (entry.current, entry.recorded) = (Some(ticket), false);
            Turn::Now
        }
    }

    /// A delivery with a row was claimed. `alone`: no other row holds its key. Returns whether it goes now, and those without
    /// a row that must get one because it does.
    pub fn claimed(&mut self, key: KeyHash, ticket: Ticket, alone: bool) -> (bool, Vec<Ticket>) {
        let entry = self.known.entry(key).or_default();
        if alone && entry.current.is_none() && entry.waiting.is_empty() {
            entry.rows = entry.writing + 1;
        } else {
            // It may have been counted before. One too many is corrected when the last one is alone.
            entry.rows += 1;
        }
        if entry.current.is_some() {
            entry.waiting.push_back(Waiting { ticket, has_row: true });
            return (false, Vec::new());
        }
        (entry.current, entry.recorded) = (Some(ticket), true);
        (true, entry.block_waiting())
    }

    /// The current delivery gets a row while it runs. Returns those that must get one behind it.
    pub fn recorded(&mut self, key: KeyHash) -> Vec<Ticket> {
        let Some(entry) = self.known.get_mut(&key) else { return Vec::new() };
        entry.recorded = true;
        entry.rows += 1;
        entry.writing += 1;
        entry.block_waiting()
    }

    /// The current delivery has ended for good, or lets the others pass; its row, if it had one, does not hold the key any more.
    /// Also returns those without a row that must get one because the next one has one.
    pub fn passed(&mut self, key: KeyHash) -> (Next, Vec<Ticket>) {
        let Some(entry) = self.known.get_mut(&key) else { return (Next::Nobody, Vec::new()) };
        entry.rows -= u32::from(entry.recorded && entry.rows > 0);
        entry.current = None;
        if let Some(next) = entry.waiting.pop_front() {
            (entry.current, entry.recorded) = (Some(next.ticket), next.has_row);
            let blocked = if next.has_row { entry.block_waiting() } else { Vec::new() };
            return (Next::Goes(next), blocked);
        }
        let next = if entry.rows > 0 { Next::IsClaimed } else { Next::Nobody };
        self.forget_if_free(key);
        (next, Vec::new())
    }

    /// The current delivery keeps its key, with a row in `outbox.open`. Returns everybody behind it, in order: who has no row
    /// must get one, who has one goes back.
    pub fn held(&mut self, key: KeyHash) -> Vec<Waiting> {
        let Some(entry) = self.known.get_mut(&key) else { return Vec::new() };
        if !entry.recorded {
            entry.rows += 1;
            entry.writing += 1;
        }
        entry.current = None;
        let behind: Vec<Waiting> = entry.waiting.drain(..).collect();
        for _ in behind.iter().filter(|waiting| !waiting.has_row) {
            entry.block();
        }
        behind
    }

    /// A row of this key that was being written is committed.
    pub fn wrote(&mut self, key: KeyHash) {
        if let Some(entry) = self.known.get_mut(&key) {
            entry.writing = entry.writing.saturating_sub(1);
        }
    }

    /// A delivery that was waiting in memory is gone; whether it was there.
    pub fn withdraw(&mut self, key: KeyHash, ticket: Ticket) -> bool {
        let Some(entry) = self.known.get_mut(&key) else { return false };
        let before = entry.waiting.len();
        entry.waiting.retain(|waiting| waiting.ticket != ticket);
        before > entry.waiting.len()
    }

    /// Whose turn it is, and those without a row that wait before this one, who wait no more.
    pub fn before(&mut self, key: KeyHash, ticket: Ticket) -> (Option<Ticket>, Vec<Ticket>) {
        let Some(entry) = self.known.get_mut(&key) else { return (None, Vec::new()) };
        let (stay, gone): (VecDeque<Waiting>, VecDeque<Waiting>) =
            entry.waiting.drain(..).partition(|waiting| waiting.has_row || waiting.ticket == ticket);
        entry.waiting = stay;
        (entry.current, gone.into_iter().map(|waiting| waiting.ticket).collect())
    }

    /// One that was waiting takes the turn of the current one, which goes, and has no row.
    pub fn take_over(&mut self, key: KeyHash, ticket: Ticket) {
        if let Some(entry) = self.known.get_mut(&key) {
            entry.waiting.retain(|waiting| waiting.ticket != ticket);
            entry.current = Some(ticket);
        }
    }

    /// Everybody who waits in memory, who waits no more.
    pub fn drain(&mut self) -> Vec<Waiting> {
        self.known.values_mut().flat_map(|key| key.waiting.drain(..)).collect()
    }

    /// Whether this is the delivery whose turn it is.
    #[must_use]
    pub fn is_current(&self, key: KeyHash, ticket: Ticket) -> bool {
        self.known.get(&key).is_some_and(|entry| entry.current == Some(ticket))
    }

    fn has_room(&mut self, key: KeyHash) -> bool {
        let room = self.known.len() < KEYS_MAX || self.known.contains_key(&key);
        self.any_may_have_rows |= !room;
        room
    }

    fn forget_if_free(&mut self, key: KeyHash) {
        if self
            .known
            .get(&key)
            .is_some_and(|entry| entry.current.is_none() && entry.waiting.is_empty() && entry.rows == 0)
        {
            self.known.remove(&key);
        }
    }
}

impl Key {
    fn block(&mut self) {
        self.rows += 1;
        self.writing += 1;
    }

    /// Takes those without a row out of memory, because they get one.
    fn block_waiting(&mut self) -> Vec<Ticket> {
        let (stay, blocked): (VecDeque<Waiting>, VecDeque<Waiting>) =
            self.waiting.drain(..).partition(|waiting| waiting.has_row);
        self.waiting = stay;
        for _ in &blocked {
            self.block();
        }
        blocked.into_iter().map(|waiting| waiting.ticket).collect()
    }
}
