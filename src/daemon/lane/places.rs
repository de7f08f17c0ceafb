//! So many attempts of a key at a time: which delivery has a place, which waits for one in memory, and which in `outbox.open`.
//!
//! Places are counted here and nowhere else: attempts run in the leader only, so what a crash leaves behind has none. The database
//! only keeps what waits; its rows are claimed by key as soon as there is a place. A key with much to do takes no more than its share
//! of the lane: what is beyond it gets a row, and the lane goes on to the others.
//!
//! Pure, and bounded: see [`WAITING_MAX`], [`WAITING_BYTES_MAX`], [`OF_ALL_KEYS`] and [`KEYS_MAX`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::super::write::Ticket;
use super::keys::Turn;
use super::{LANE_BYTES_MAX, LANE_DELIVERIES_MAX};
use crate::store::settle::Parked;

/// Deliveries of a key that wait in memory at most: a sixteenth of the lane, so eight keys with a backlog leave half of it to others.
pub const WAITING_MAX: usize = LANE_DELIVERIES_MAX / 16;
/// The weight of their events at which no more wait.
pub const WAITING_BYTES_MAX: usize = LANE_BYTES_MAX / 16;
/// What waits in memory of all keys is at most so many times that: half of the lane is for what goes.
pub const OF_ALL_KEYS: usize = 8;
/// Keys with rows that wait for a place at most; with more, nothing of another key is written down, and the lane waits for those.
pub const KEYS_MAX: usize = 100_000;

/// The places of one lane's keys.
#[derive(Debug)]
pub struct Places {
    most: usize,
    keys: HashMap<Arc<str>, Key>,
    /// Deliveries that wait in memory.
    waiting: Load,
    /// Keys of which rows wait for a place.
    parked: usize,
    /// Those of them with a free place, the first for longest. One that has none any more is passed over.
    ready: VecDeque<Arc<str>>,
}

#[derive(Debug, Default)]
struct Key {
    /// Deliveries that are queued or run, and places kept for a claim.
    taken: usize,
    waiting: VecDeque<Waiting>,
    load: Load,
    rows: Option<Rows>,
}

/// How many deliveries, and the weight of their events.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    deliveries: usize,
    weight: usize,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    weight: usize,
}

/// Rows of a key that wait for a place.
#[derive(Debug, Default)]
struct Rows {
    /// Those that are being written.
    writing: usize,
    /// Places that are kept for those which a claim under way brings.
    asked: usize,
    /// There may be some that a claim finds.
    there: bool,
    /// The key is among those that are ready.
    is_ready: bool,
}

impl Places {
    /// At most so many of a key at a time, with the keys of the rows that wait already.
    #[must_use]
    pub fn new(most: usize, parked: &[Arc<str>]) -> Self {
        let (keys, ready) = (HashMap::new(), VecDeque::new());
        let mut places = Self { most, keys, waiting: Load::default(), parked: 0, ready };
        for key in parked {
            places.rows(key).there = true;
            places.make_ready(key);
        }
        places
    }

    /// A delivery that was read wants to go. It goes behind those of its key that were read before, where they wait.
    pub fn offer(&mut self, key: &str, ticket: Ticket, weight: usize) -> Turn {
        let is_full = self.is_full();
        let entry = self.keys.entry(key.into()).or_default();
        let has_place = entry.taken < self.most;
        let has_share = entry.load.reaches(1) || (!has_place && self.waiting.reaches(OF_ALL_KEYS));
        if entry.rows.is_some() || (has_share && !is_full) {
            self.rows(key).writing += 1;
            Turn::Blocked
        } else if has_place {
            entry.taken += 1;
            Turn::Now
        } else {
            entry.waiting.push_back(Waiting { ticket, weight });
            entry.load.add(weight);
            self.waiting.add(weight);
            Turn::Later
        }
    }

    /// Takes a place for one that does not wait in memory; false if there is none, or others of its key wait with a row.
    pub fn take(&mut self, key: &str) -> bool {
        let entry = self.keys.entry(key.into()).or_default();
        let has_place = entry.taken < self.most && entry.rows.is_none();
        entry.taken += usize::from(has_place);
        has_place
    }

    /// One that was claimed has no place: its row waits, too.
    pub fn put_back(&mut self, key: &str) {
        self.rows(key).writing += 1;
    }

    /// A place is free. Returns the delivery that takes it.
    pub fn free(&mut self, key: &str) -> Option<Ticket> {
        let entry = self.keys.get_mut(key)?;
        entry.taken = entry.taken.saturating_sub(1);
        let next = entry.next(self.most, &mut self.waiting);
        if next.is_none() {
            self.make_ready(key);
        }
        self.forget_if_free(key);
        next
    }

    /// A row of this key that was being written is committed.
    pub fn wrote(&mut self, key: &str) {
        if let Some(rows) = self.keys.get_mut(key).and_then(|entry| entry.rows.as_mut()) {
            rows.writing = rows.writing.saturating_sub(1);
            rows.there = true;
            self.make_ready(key);
        }
    }

    /// Takes free places for rows that wait, at most so many: how many to claim of which key. [`Self::claimed`] has the answer.
    pub fn ask(&mut self, mut most: usize) -> Vec<(Arc<str>, usize)> {
        let mut asked = Vec::new();
        while most > 0
            && let Some(key) = self.ready.pop_front()
        {
            let Some(entry) = self.keys.get_mut(&key) else { continue };
            let free = self.most.saturating_sub(entry.taken);
            let Some(rows) = &mut entry.rows else { continue };
            rows.is_ready = false;
            if free == 0 || !rows.there {
                continue;
            }
            rows.asked = free.min(most);
            // The claim says whether others are left; what is written meanwhile says so itself.
            rows.there = false;
            most -= rows.asked;
            entry.taken += rows.asked;
            asked.push((key, rows.asked));
        }
        asked
    }

    /// What became of the rows that were asked for.
    pub fn claimed(&mut self, parked: &[Parked]) {
        for Parked { key, claimed, left } in parked {
            if let Some(entry) = self.keys.get_mut(&**key)
                && let Some(rows) = &mut entry.rows
            {
                let unused = std::mem::take(&mut rows.asked).saturating_sub(*claimed);
                rows.there |= left;
                entry.taken = entry.taken.saturating_sub(unused);
            }
            self.make_ready(key);
            self.forget_if_free(key);
        }
    }

    /// Takes another number of places. Returns those that waited and have one now.
    pub fn resize(&mut self, most: usize) -> Vec<Ticket> {
        self.most = most;
        let mut taken = Vec::new();
        let keys: Vec<Arc<str>> = self.keys.keys().cloned().collect();
        for key in keys {
            if let Some(entry) = self.keys.get_mut(&key) {
                taken.extend(std::iter::from_fn(|| entry.next(most, &mut self.waiting)));
            }
            self.make_ready(&key);
        }
        taken
    }

    /// A delivery that was waiting in memory is gone; whether it was there.
    pub fn withdraw(&mut self, key: &str, ticket: Ticket) -> bool {
        let Some(entry) = self.keys.get_mut(key) else { return false };
        let place = entry.waiting.iter().position(|waiting| waiting.ticket == ticket);
        let Some(Waiting { weight, .. }) = place.and_then(|place| entry.waiting.remove(place)) else { return false };
        entry.load.remove(weight);
        self.waiting.remove(weight);
        true
    }

    /// Everybody who waits in memory, who waits no more.
    pub fn drain(&mut self) -> Vec<Ticket> {
        self.waiting = Load::default();
        let waiting = self.keys.values_mut().flat_map(|entry| {
            entry.load = Load::default();
            entry.waiting.drain(..)
        });
        waiting.map(|waiting| waiting.ticket).collect()
    }

    /// Whether a claim may find rows that have a place.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether no row may be added of a key that has none.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.parked >= KEYS_MAX
    }

    fn rows(&mut self, key: &str) -> &mut Rows {
        self.keys.entry(key.into()).or_default().rows.get_or_insert_with(|| {
            self.parked += 1;
            Rows::default()
        })
    }

    fn make_ready(&mut self, key: &str) {
        let Some(entry) = self.keys.get_mut(key).filter(|entry| entry.taken < self.most) else { return };
        if let Some(rows) = entry.rows.as_mut().filter(|rows| rows.there && !rows.is_ready) {
            rows.is_ready = true;
            self.ready.push_back(key.into());
        }
    }

    fn forget_if_free(&mut self, key: &str) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        if entry.rows.as_ref().is_some_and(|rows| !rows.there && rows.writing == 0 && rows.asked == 0) {
            entry.rows = None;
            self.parked -= 1;
        }
        if entry.taken == 0 && entry.waiting.is_empty() && entry.rows.is_none() {
            self.keys.remove(key);
        }
    }
}

impl Key {
    /// The next of those that wait, with a place, if there is one.
    fn next(&mut self, most: usize, of_all: &mut Load) -> Option<Ticket> {
        if self.taken >= most {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.load.remove(next.weight);
        of_all.remove(next.weight);
        self.taken += 1;
        Some(next.ticket)
    }
}

impl Load {
    /// Whether it is so many times what a key may have in memory.
    fn reaches(self, times: usize) -> bool {
        self.deliveries >= times * WAITING_MAX || self.weight >= times * WAITING_BYTES_MAX
    }

    fn add(&mut self, weight: usize) {
        self.deliveries += 1;
        self.weight += weight;
    }

    fn remove(&mut self, weight: usize) {
        self.deliveries -= 1;
        self.weight -= weight;
    }
}
