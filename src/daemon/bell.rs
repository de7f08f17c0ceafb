//! The bell: when to read the log, and when producers need not ring.
//!
//! The flag in the database says "asleep, ring" or "awake, be silent". The hard part is the producer that saw "awake",
//! skipped the bell and commits later. Falling asleep therefore goes in three steps:
//!
//! 1. set the flag to "asleep", in a statement of its own;
//! 2. afterwards, in a new snapshot, list the transactions in progress that may have inserted events;
//! 3. read the log; stay *drowsy*, reading again and again, until every one of them has ended.
//!
//! No wake-up is lost: the trigger reads the flag after the row was inserted, so a producer that read "awake" did so
//! before step 1 and has its transaction id by then. At step 2 it has either ended, and step 3 sees its rows, or it is
//! on the list. Whoever reads later reads "asleep" and rings, which is delivered after its commit, and this daemon has
//! been listening since before step 1. Isolation levels do not matter, because the flag is no row; nor does a crash,
//! because a new leader begins by reading.
//!
//! Pure: the clock is an argument, the caller does what [`Bell::next`] says.

use std::time::{Duration, Instant};

use crate::snapshot::Snapshot;

/// So long without an event, and the daemon goes to sleep. Longer means fewer NOTIFYs under load, and more reads of
/// nothing after the last event.
const AWAKE_FOR: Duration = Duration::from_millis(20);
/// Between two reads, awake: a third of a millisecond, and longer the more there is to read, so that a busy log is read in pages
/// worth a statement. Sixteen producers at 10,000 commits a second are read about 200 times a second; without the pause it was as
/// often as a read takes, some 1,500 times. With three times these pauses the p99 of 2,000 events a second was twice as long.
const READ_PAUSE: Duration = Duration::from_micros(300);
const READ_PAUSE_PER_EVENT: Duration = Duration::from_micros(50);
const READ_PAUSE_MAX: Duration = Duration::from_millis(5);
/// A read that found so many events is followed by the next one at once.
const PAGE_WORTH: usize = 200;
/// Between two reads that found nothing, drowsy: a sixteenth of the time spent drowsy, within these.
const DROWSY_PAUSE_MIN: Duration = Duration::from_millis(2);
const DROWSY_PAUSE_MAX: Duration = Duration::from_millis(500);
/// So many reads in a row that find events, and it is worth silencing the producers: a lone event costs two reads and
/// no change of the flag.
const STREAK_TO_WAKE: u8 = 2;
/// A read that finds so many events is a stream by itself. With 64 producers at work on the daemon's two cores a read takes
/// several milliseconds, and everybody rings meanwhile.
const STREAM: usize = 4;

/// When to read the log next.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub struct Bell {
    mode: Mode,
    /// Reads in a row that found events.
    streak: u8,
    /// When to read next; `None` when only the bell says so.
    read_at: Option<Instant>,
    /// It rang after the present read began, which may not see what was announced.
    rung: bool,
}

#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Clone, Hash))]
enum Mode {
    /// The flag says "be silent", or is not known yet.
    Awake { quiet_since: Instant },
    /// The flag says "ring"; these producers may have skipped it.
    Drowsy { since: Instant, producers: Vec<u64> },
    /// The flag says "ring", and everybody does.
    Asleep,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Read the log, then tell [`Bell::read`].
    Read,
    /// Set the flag to "asleep", then list the producers, then tell [`Bell::fell_asleep`].
    FallAsleep,
    /// Set the flag to "awake", then tell [`Bell::woke_up`].
    WakeUp,
    /// Nothing before this time, or before the bell rings.
    Wait(Option<Instant>),
}

impl Bell {
    /// Begins awake: the first thing a leader does is read.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { mode: Mode::Awake { quiet_since: now }, streak: 0, read_at: Some(now), rung: false }
    }

    #[must_use]
    pub fn next(&self, now: Instant) -> Next {
        match self.mode {
            Mode::Awake { quiet_since } if now >= quiet_since + AWAKE_FOR => return Next::FallAsleep,
            Mode::Drowsy { .. } | Mode::Asleep if self.streak >= STREAK_TO_WAKE => return Next::WakeUp,
            _ => {}
        }
        match self.read_at {
            Some(at) if at <= now => Next::Read,
            at => Next::Wait(at),
        }
    }

    /// Whether producers are silent.
    #[must_use]
    pub fn is_awake(&self) -> bool {
        matches!(self.mode, Mode::Awake { .. })
    }

    /// Whether every producer rings.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.mode == Mode::Asleep
    }

    /// The bell rang, or somebody wants the log read anyway.
    pub fn ring(&mut self, now: Instant) {
        self.rung = true;
        if !matches!(self.mode, Mode::Awake { .. }) {
            self.read_at = Some(now);
        }
    }

    /// The log begins to be read: what rings from now on asks for another read.
    pub fn reads(&mut self) {
        self.rung = false;
    }

    /// The log was read and held so many events; the read's own snapshot says which producers had ended.
    pub fn read(&mut self, events: usize, snapshot: &Snapshot, now: Instant) {
        let found = events > 0;
        self.streak = match events {
            0 => 0,
            1..STREAM => self.streak.saturating_add(1),
            _ => STREAK_TO_WAKE,
        };
        self.read_at = match &mut self.mode {
            Mode::Awake { .. } if events < PAGE_WORTH => Some(now + read_pause(events)),
            _ if found || self.rung => Some(now),
            Mode::Drowsy { since, producers } => {
                producers.retain(|&xid| !snapshot.sees(xid));
                (!producers.is_empty()).then(|| now + ((now - *since) / 16).clamp(DROWSY_PAUSE_MIN, DROWSY_PAUSE_MAX))
            }
            Mode::Awake { .. } | Mode::Asleep => None,
        };
        match &mut self.mode {
            Mode::Awake { quiet_since } if found => *quiet_since = now,
            Mode::Drowsy { producers, .. } if !found && producers.is_empty() => self.mode = Mode::Asleep,
            _ => {}
        }
    }

    /// The flag says "asleep" now, and these transactions may have skipped the bell.
    pub fn fell_asleep(&mut self, producers: Vec<u64>, now: Instant) {
        *self = Self { mode: Mode::Drowsy { since: now, producers }, streak: 0, read_at: Some(now), rung: false };
    }

    /// The flag says "awake" now.
    pub fn woke_up(&mut self, now: Instant) {
        *self = Self::new(now);
    }
}

fn read_pause(events: usize) -> Duration {
    let events = u32::try_from(events).unwrap_or(u32::MAX);
    READ_PAUSE_PER_EVENT.saturating_mul(events).saturating_add(READ_PAUSE).min(READ_PAUSE_MAX)
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing_in_progress() -> Snapshot {
        "100:100:".parse().unwrap()
    }

    #[test]
    fn falls_asleep_after_a_quiet_while_and_reads_once_more_first() {
        let start = Instant::now();
        let mut bell = Bell::new(start);
        assert_eq!(bell.next(start), Next::Read);
        bell.read(0, &nothing_in_progress(), start);
        assert_eq!(bell.next(start), Next::Wait(Some(start + READ_PAUSE)));
        let later = start + AWAKE_FOR;
        assert_eq!(bell.next(later), Next::FallAsleep);
        bell.fell_asleep(vec![], later);
        assert!(!bell.is_asleep());
        assert_eq!(bell.next(later), Next::Read);
        bell.read(0, &nothing_in_progress(), later);
        assert!(bell.is_asleep());
        assert_eq!(bell.next(later), Next::Wait(None));
    }

    #[test]
    fn stays_drowsy_while_a_producer_that_skipped_the_bell_is_open() {
        let now = Instant::now();
        let mut bell = Bell::new(now);
        bell.fell_asleep(vec![7, 9], now);
        bell.read(0, &"7:100:7".parse().unwrap(), now);
        assert!(!bell.is_asleep());
        assert!(matches!(bell.next(now), Next::Wait(Some(_))));
        // 7 ends with rows: they are read, and only the next empty read lets the daemon sleep.
        bell.read(3, &nothing_in_progress(), now);
        assert_eq!(bell.next(now), Next::Read);
        bell.read(0, &nothing_in_progress(), now);
        assert!(bell.is_asleep());
    }

    #[test]
    fn a_ring_during_a_read_asks_for_another_one() {
        let now = Instant::now();
        let mut bell = Bell::new(now);
        bell.fell_asleep(vec![], now);
        bell.reads();
        bell.read(0, &nothing_in_progress(), now);
        assert!(bell.is_asleep());
        bell.ring(now);
        assert_eq!(bell.next(now), Next::Read);
        bell.reads();
        // Committed after the read's snapshot, heard before its answer.
        bell.ring(now);
        bell.read(0, &nothing_in_progress(), now);
        assert_eq!(bell.next(now), Next::Read);
        bell.reads();
        bell.read(0, &nothing_in_progress(), now);
        assert_eq!(bell.next(now), Next::Wait(None));
    }

    #[test]
    fn a_lone_event_leaves_the_flag_alone_and_a_stream_silences_the_producers() {
        let now = Instant::now();
        let mut bell = Bell::new(now);
        bell.fell_asleep(vec![], now);
        bell.read(0, &nothing_in_progress(), now);
        bell.ring(now);
        bell.read(1, &nothing_in_progress(), now);
        assert_eq!(bell.next(now), Next::Read);
        bell.read(0, &nothing_in_progress(), now);
        assert!(bell.is_asleep());
        bell.ring(now);
        bell.read(1, &nothing_in_progress(), now);
        bell.read(1, &nothing_in_progress(), now);
        assert_eq!(bell.next(now), Next::WakeUp);
        bell.woke_up(now);
        assert_eq!(bell.next(now), Next::Read);
    }

    #[test]
    fn one_read_that_finds_several_events_silences_the_producers() {
        let now = Instant::now();
        let mut bell = Bell::new(now);
        bell.fell_asleep(vec![], now);
        bell.read(0, &nothing_in_progress(), now);
        bell.ring(now);
        bell.read(STREAM, &nothing_in_progress(), now);
        assert_eq!(bell.next(now), Next::WakeUp);
    }
}
