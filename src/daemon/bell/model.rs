//! The bell in every order of events that is possible: three transactions, PostgreSQL and a daemon that may crash, one
//! small step at a time. The bell itself is the shipped one.
//!
//! There is no poll. The promise: whatever has happened, once an event is committed, the daemon's and PostgreSQL's own
//! steps deliver it, on every path and without another producer's help. Each fault in the order of steps must break it.
//!
//! What is modelled of PostgreSQL: a snapshot knows the transactions below the highest one that has ended, so one that
//! runs above it is not listed as in progress; a commit becomes visible, then frees its locks, then notifies; a
//! notification reaches who listened when it became visible; a sequence is seen at once by everybody.

mod search;
mod state;

use search::{Search, check};
use state::Fault;

use super::*;

/// The present, always: what lies before or after it is moved instead.
fn present() -> Instant {
    static PRESENT: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *PRESENT.get_or_init(|| Instant::now() + Duration::from_hours(1))
}

impl Bell {
    /// What the last reads found is worth waking up for.
    fn waking() -> Self {
        Self { mode: Mode::Asleep, streak: STREAK_TO_WAKE, read_at: Some(present()), rung: false }
    }

    /// Only whether a time has come matters here, not how far it is.
    fn rounded(mut self) -> Self {
        let now = present();
        self.read_at = self.read_at.map(|at| if at <= now { now } else { now + DROWSY_PAUSE_MAX });
        self.mode = match self.mode {
            Mode::Awake { quiet_since } if now >= quiet_since + AWAKE_FOR => {
                Mode::Awake { quiet_since: now.checked_sub(AWAKE_FOR).unwrap() }
            }
            Mode::Awake { .. } => Mode::Awake { quiet_since: now },
            Mode::Drowsy { producers, .. } => Mode::Drowsy { since: now, producers },
            Mode::Asleep => Mode::Asleep,
        };
        self
    }

    /// The bell after a pause: the next read is due, and maybe it has been quiet long enough to sleep.
    fn later(&self, quiet: bool) -> Self {
        let mut bell = self.clone();
        bell.read_at = bell.read_at.map(|at| at.min(present()));
        if let (Mode::Awake { quiet_since }, true) = (&mut bell.mode, quiet) {
            *quiet_since = present().checked_sub(AWAKE_FOR).unwrap();
        }
        bell
    }

    fn producers(&mut self) -> &mut [u64] {
        match &mut self.mode {
            Mode::Drowsy { producers, .. } => producers,
            Mode::Awake { .. } | Mode::Asleep => &mut [],
        }
    }
}

#[test]
fn no_wake_up_is_lost_in_any_order_of_events() {
    // Three take half a minute where nothing is optimised.
    let more = std::env::var("OUTBOXD_TEST_SCALE").is_ok_and(|scale| scale != "1");
    let searches = [(2, 1, 40_000), (2, 2, 60_000), (3, 0, 400_000)];
    for (transactions, crashes, states_min) in searches.into_iter().take(if more { 3 } else { 1 }) {
        let search = check(transactions, crashes, None);
        println!("{transactions} transactions, {crashes} crashes: {} states", search.states());
        assert!(search.lost().is_none(), "lost after: {:#?}", search.lost());
        assert!(search.states() > states_min, "{} states only", search.states());
        let crash = ["the daemon ends", "a daemon that has ended sets the flag"];
        for step in Search::STEPS.iter().filter(|step| crashes > 0 || !crash.contains(step)) {
            assert!(search.saw(step), "nothing led to: {step}");
        }
    }
}

#[test]
fn every_fault_in_the_order_of_steps_loses_a_wake_up() {
    for fault in Fault::ALL {
        let crashes = u8::from(fault == Fault::OldSessionsMaySetTheFlag);
        let search = check(2, crashes, Some(fault));
        let lost = search.lost().unwrap_or_else(|| panic!("{fault:?} is not noticed in {} states", search.states()));
        println!("{fault:?} ({} states): {}", search.states(), lost.join(" → "));
    }
}
