//! The tail: who reads the log from where.
//!
//! Handlers at the *head* share one cursor and one read. A handler whose lane has no room falls *behind*: it keeps a
//! cursor of its own and reads up to the head when it has room again. So a slow handler holds up nobody, its backlog
//! stays in the log, and one read serves everybody else.
//!
//! Pure: says what to read next, and is told what was read.

use std::collections::BTreeMap;

use super::lane::LANE_DELIVERIES_MAX;
use super::write::LaneId;
use crate::snapshot::Snapshot;
use crate::store::log::{Cursor, PageLimit};

/// Events in one page at most. At 1,000 rows a page takes 3 to 4 ms; larger pages read no faster.
const PAGE_EVENTS: usize = 1000;
/// A page is not worth a read for less room than this.
const PAGE_EVENTS_MIN: usize = 250;
/// A page ends when it has gathered this weight.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Where every lane reads.
#[derive(Debug)]
pub struct Tail {
    head: Cursor,
    lanes: BTreeMap<LaneId, Reader>,
    /// The lane behind that read last, so that they take turns with each other and with the head.
    last_behind: Option<LaneId>,
    head_read_last: bool,
}

#[derive(Debug, Clone)]
enum Reader {
    Head,
    Behind(Cursor),
}

/// What to read next.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// For all lanes at the head.
    Head { cursor: Cursor, limit: PageLimit, lanes: Vec<LaneId> },
    /// For one lane, up to the head.
    Behind { lane: LaneId, cursor: Cursor, head: Cursor, limit: PageLimit },
}

impl Tail {
    /// Begins with these lanes at these positions. The head is the position that includes all others, if there is one;
    /// `now`, a snapshot taken after all of them, does in any case.
    #[must_use]
    pub fn new(positions: &BTreeMap<LaneId, Snapshot>, now: Snapshot) -> Self {
        let newest = positions.values().find(|p| positions.values().all(|other| p.includes(other))).cloned();
        let head = Cursor::at(newest.unwrap_or(now));
        let mut tail = Self { head, lanes: BTreeMap::new(), last_behind: None, head_read_last: false };
        for (&lane, position) in positions {
            tail.add(lane, position.clone());
        }
        tail
    }

    /// Adds a lane that has consumed the log up to this position.
    pub fn add(&mut self, lane: LaneId, position: Snapshot) {
        let cursor = Cursor::at(position);
        let reader = if cursor == self.head { Reader::Head } else { Reader::Behind(cursor) };
        self.lanes.insert(lane, reader);
    }

    pub fn remove(&mut self, lane: LaneId) {
        self.lanes.remove(&lane);
    }

    /// Where a handler begins that begins now.
    #[must_use]
    pub fn head(&self) -> &Snapshot {
        &self.head.position
    }

    /// Whether a lane reads for itself.
    #[must_use]
    pub fn is_behind(&self, lane: LaneId) -> bool {
        matches!(self.lanes.get(&lane), Some(Reader::Behind(_)))
    }

    /// Whether anybody would take what a read at the head finds.
    #[must_use]
    pub fn wants_head(&self) -> bool {
        self.lanes.values().any(|reader| match reader {
            Reader::Head => true,
            // Ahead of the head, or beside it: the head must move first.
            Reader::Behind(cursor) => !self.head.position.includes(&cursor.position),
        })
    }

    /// What to read next: the head if there may be news, or a lane behind that has room, in turns. Lanes at the head
    /// without room fall behind, unless nobody there has room. `fell` is told which.
    pub fn next(&mut self, news: bool, room: impl Fn(LaneId) -> usize, mut fell: impl FnMut(LaneId)) -> Option<Read> {
        let behind = self.next_behind(&room);
        if behind.is_some() && (self.head_read_last || !news) {
            return behind;
        }
        let head = if news { self.next_head(&room, &mut fell) } else { None };
        head.or(behind)
    }

    fn next_head(&mut self, room: &impl Fn(LaneId) -> usize, fell: &mut impl FnMut(LaneId)) -> Option<Read> {
        if !self.wants_head() {
            return None;
        }
        let at_head = |(&lane, reader): (&LaneId, &Reader)| matches!(reader, Reader::Head).then(|| (lane, room(lane)));
        let lanes: Vec<(LaneId, usize)> = self.lanes.iter().filter_map(at_head).collect();
        let (ready, full): (Vec<_>, Vec<_>) = lanes.into_iter().partition(|&(_, room)| room >= PAGE_EVENTS_MIN);
        // Who has enough to do waits for those who have no room. Handlers that are about as fast as each other stay together so, and
        // share every read; each by itself would read all of the log.
        let starving = ready.iter().any(|&(_, room)| room > LANE_DELIVERIES_MAX - PAGE_EVENTS);
        if !full.is_empty() && !starving {
            return None;
        }
        for (lane, _) in full {
            self.lanes.insert(lane, Reader::Behind(self.head.clone()));
            fell(lane);
        }
        let events = ready.iter().map(|&(_, room)| room).min().unwrap_or(PAGE_EVENTS).min(PAGE_EVENTS);
        let limit = PageLimit { events, bytes: PAGE_BYTES };
        let lanes = ready.into_iter().map(|(lane, _)| lane).collect();
        Some(Read::Head { cursor: self.head.clone(), limit, lanes })
    }

    fn next_behind(&self, room: &impl Fn(LaneId) -> usize) -> Option<Read> {
        let after = |lane: &LaneId| self.last_behind.is_none_or(|last| *lane > last);
        let ready = |(&lane, reader): (&LaneId, &Reader)| match reader {
            Reader::Behind(cursor) if self.head.position.includes(&cursor.position) => {
                let room = room(lane);
                (room >= PAGE_EVENTS_MIN).then(|| Read::Behind {
                    lane,
                    cursor: cursor.clone(),
                    head: self.head.clone(),
                    limit: PageLimit { events: room.min(PAGE_EVENTS), bytes: PAGE_BYTES },
                })
            }
            _ => None,
        };
        let (later, earlier): (Vec<_>, Vec<_>) = self.lanes.iter().partition(|(lane, _)| after(lane));
        later.into_iter().chain(earlier).find_map(ready)
    }

    /// Whether the lanes at the head have read everything that this snapshot sees.
    #[must_use]
    pub fn has_read(&self, snapshot: &Snapshot) -> bool {
        self.head.partial.is_empty() && self.head.position.includes(snapshot)
    }

    /// A page was read at the head; the lanes it was read for have consumed the log up to the returned position.
    pub fn read_head(&mut self, cursor: Cursor) -> &Snapshot {
        self.head_read_last = true;
        self.head = cursor;
        &self.head.position
    }

    /// A page was read for a lane behind; returns its position now, and whether it has reached the head.
    pub fn read_behind(&mut self, lane: LaneId, cursor: Cursor) -> (Snapshot, bool) {
        self.head_read_last = false;
        self.last_behind = Some(lane);
        let position = cursor.position.clone();
        let caught_up = cursor == self.head;
        if let Some(reader) = self.lanes.get_mut(&lane) {
            *reader = if caught_up { Reader::Head } else { Reader::Behind(cursor) };
        }
        (position, caught_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(xmax: u64) -> Snapshot {
        format!("{xmax}:{xmax}:").parse().unwrap()
    }

    fn tail(positions: &[u64]) -> Tail {
        let positions = (0u32..).zip(positions).map(|(lane, &xmax)| (LaneId(lane), at(xmax))).collect();
        Tail::new(&positions, at(1000))
    }

    #[test]
    fn lanes_at_one_position_share_a_read() {
        let mut tail = tail(&[5, 5, 5]);
        let Some(Read::Head { lanes, .. }) = tail.next(true, |_| 4096, |_| {}) else { panic!() };
        assert_eq!(lanes.len(), 3);
    }

    #[test]
    fn a_lane_without_room_falls_behind_alone_and_catches_up() {
        let mut tail = tail(&[5, 5]);
        let slow = LaneId(1);
        let mut fell = Vec::new();
        let read = tail.next(true, |lane| if lane == slow { 0 } else { 4096 }, |lane| fell.push(lane));
        assert!(matches!(read, Some(Read::Head { lanes, .. }) if lanes == [LaneId(0)]));
        assert_eq!(fell, [slow]);
        tail.read_head(Cursor::at(at(9)));
        // Without room it does not read; with room it reads up to the head and joins it.
        assert_eq!(tail.next(false, |_| 0, |_| {}), None);
        let Some(Read::Behind { lane, cursor, head, .. }) = tail.next(false, |_| 4096, |_| {}) else { panic!() };
        assert_eq!((lane, cursor, head.clone()), (slow, Cursor::at(at(5)), Cursor::at(at(9))));
        assert_eq!(tail.read_behind(slow, head), (at(9), true));
        let Some(Read::Head { lanes, .. }) = tail.next(true, |_| 4096, |_| {}) else { panic!() };
        assert_eq!(lanes.len(), 2);
    }

    #[test]
    fn who_has_enough_to_do_waits_for_who_has_no_room() {
        let mut tail = tail(&[5, 5]);
        let busy = |lane| if lane == LaneId(1) { 100 } else { 2000 };
        assert_eq!(tail.next(true, busy, |lane| panic!("{lane:?} fell behind")), None);
        // The other one has fewer than a page left.
        let starving = |lane| if lane == LaneId(1) { 100 } else { 3500 };
        let mut fell = Vec::new();
        let read = tail.next(true, starving, |lane| fell.push(lane));
        assert!(matches!(read, Some(Read::Head { lanes, .. }) if lanes == [LaneId(0)]));
        assert_eq!(fell, [LaneId(1)]);
    }

    #[test]
    fn when_nobody_at_the_head_has_room_nobody_falls_behind() {
        let mut tail = tail(&[5, 5]);
        assert_eq!(tail.next(true, |_| 10, |lane| panic!("{lane:?} fell behind")), None);
    }

    #[test]
    fn the_head_and_those_behind_take_turns() {
        let mut tail = tail(&[9, 5, 5]);
        let mut order = Vec::new();
        for _ in 0..4 {
            match tail.next(true, |_| 4096, |_| {}) {
                Some(Read::Head { cursor, .. }) => {
                    order.push("head".to_owned());
                    tail.read_head(cursor);
                }
                Some(Read::Behind { lane, cursor, .. }) => {
                    order.push(format!("{}", lane.0));
                    tail.read_behind(lane, cursor);
                }
                None => panic!(),
            }
        }
        assert_eq!(order, ["head", "1", "head", "2"]);
    }
}
