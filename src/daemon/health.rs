//! Whether the daemon lives, and whether it is ready: what `/healthz` and `/readyz` answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::observe::Observation;
use crate::systemd::Watchdog;

/// A loop that has made no progress for so long hangs. `WatchdogSec=` of the unit says the same.
const HANGS_AFTER: Duration = Duration::from_secs(30);
/// A leader's loop turns every five seconds at least, a standby's every second; both need no answer of PostgreSQL for longer.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// See the module's documentation.
pub(super) struct Health {
    progress: Arc<Watchdog>,
    standing: Mutex<Place>,
    /// When a leader's listener heard something last, and when it was last known what the log holds.
    heard: Mutex<Option<Instant>>,
    looked: Mutex<Option<Instant>>,
    /// The leader has had no answer for so long that it begins nothing.
    unanswered: AtomicBool,
}

/// What the daemon is. `Away`: not ready, because of this.
enum Place {
    Leading,
    StandingBy,
    Away(String),
}

impl Health {
    pub(super) fn new(progress: Arc<Watchdog>) -> Self {
        let standing = Mutex::new(Place::Away("starting".to_owned()));
        let (heard, looked) = (Mutex::new(None), Mutex::new(None));
        Self { progress, standing, heard, looked, unanswered: AtomicBool::new(false) }
    }

    /// Takes note of what happened.
    pub(super) fn note(&self, observation: &Observation) {
        let standing = match observation {
            Observation::Leading => Place::Leading,
            Observation::StandingBy { .. } => Place::StandingBy,
            Observation::TermEnded { reason, .. } => Place::Away(format!("connecting again: {reason}")),
            Observation::Draining { .. } => Place::Away("stopping".to_owned()),
            Observation::Drained { .. } => Place::Away("stopped".to_owned()),
            _ => return,
        };
        for told in [&self.heard, &self.looked] {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.unanswered.store(false, Ordering::Relaxed);
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    /// The listening session has heard the bell.
    pub(super) fn heard(&self, now: Instant) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// The log has been read, or the poll has found that there is nothing to read.
    pub(super) fn looked(&self, now: Instant) {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Whether PostgreSQL keeps the leader waiting.
    pub(super) fn waits_for_an_answer(&self, waits: bool) {
        self.unanswered.store(waits, Ordering::Relaxed);
    }

    /// The process lives while its loop makes progress; waiting for a database that is away is progress.
    pub(super) fn lives(&self, now: Instant) -> Result<&'static str, String> {
        let idle = self.progress.idle(now);
        if idle < HANGS_AFTER {
            return Ok("ok");
        }
        Err(format!("the loop that dispatches has made no progress for {} s", idle.as_secs()))
    }

    /// Ready: it leads or stands by, and PostgreSQL answers.
    pub(super) fn is_ready(&self, now: Instant) -> Result<String, String> {
        let idle = self.progress.idle(now);
        let ready = match &*self.standing.lock().unwrap_or_else(PoisonError::into_inner) {
            Place::Leading => self.leads(now),
            Place::StandingBy => "standing by".to_owned(),
            Place::Away(why) => return Err(why.replace(char::is_control, " ")),
        };
        if self.unanswered.load(Ordering::Relaxed) {
            return Err("PostgreSQL does not answer; nothing begins".to_owned());
        }
        if idle >= STUCK_AFTER {
            return Err(format!("nothing was heard of PostgreSQL for {} s", idle.as_secs()));
        }
        Ok(ready)
    }

    /// A leader says since when it knows what it says. Deaf or without answers, it ends its term by itself.
    fn leads(&self, now: Instant) -> String {
        let ago = |told: &Mutex<Option<Instant>>| {
            let at = *told.lock().unwrap_or_else(PoisonError::into_inner);
            at.map_or_else(
                || "not yet".to_owned(),
                |at| format!("{} s ago", now.saturating_duration_since(at).as_secs()),
            )
        };
        format!("leading; the bell was heard {}, the log looked at {}", ago(&self.heard), ago(&self.looked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_makes_no_progress_is_first_not_ready_and_then_not_alive() {
        let progress = Arc::new(Watchdog::from_env());
        let health = Health::new(Arc::clone(&progress));
        let now = Instant::now() + Duration::from_mins(1);
        progress.made(now);
        assert_eq!(health.is_ready(now), Err("starting".to_owned()));
        health.note(&Observation::Leading);
        let after = |seconds| {
            let at = now + Duration::from_secs(seconds);
            (health.is_ready(at).is_ok(), health.lives(at).is_ok())
        };
        assert_eq!(
            [0, 9, 11, 29, 31].map(after),
            [(true, true), (true, true), (false, true), (false, true), (false, false)]
        );
        progress.made(now + Duration::from_secs(31));
        assert_eq!(after(31), (true, true));
    }

    #[test]
    fn a_leader_without_answers_is_not_ready_and_a_reason_is_one_line() {
        let health = Health::new(Arc::new(Watchdog::from_env()));
        let now = Instant::now();
        health.note(&Observation::Leading);
        health.waits_for_an_answer(true);
        assert!(health.is_ready(now).is_err());
        health.waits_for_an_answer(false);
        let (not_yet, told) = (
            "leading; the bell was heard not yet, the log looked at not yet",
            "leading; the bell was heard 7 s ago, the log looked at 0 s ago",
        );
        assert_eq!(health.is_ready(now), Ok(not_yet.to_owned()));
        health.heard(now);
        health.looked(now + Duration::from_secs(7));
        assert_eq!(health.is_ready(now + Duration::from_secs(7)), Ok(told.to_owned()));
        let ended = Observation::TermEnded { reason: "a\nb".to_owned(), unwritten: 0, pause: Duration::ZERO };
        health.waits_for_an_answer(true);
        health.note(&ended);
        assert_eq!(health.is_ready(now), Err("connecting again: a b".to_owned()));
        health.note(&Observation::StandingBy { leader: String::new() });
        assert_eq!(health.is_ready(now), Ok("standing by".to_owned()));
        health.note(&Observation::Leading);
        assert_eq!(health.is_ready(now), Ok(not_yet.to_owned()), "a new term has heard nothing yet");
    }
}
