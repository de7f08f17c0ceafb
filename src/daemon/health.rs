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
        Self { progress, standing, unanswered: AtomicBool::new(false) }
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
        self.unanswered.store(false, Ordering::Relaxed);
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
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
    pub(super) fn is_ready(&self, now: Instant) -> Result<&'static str, String> {
        let idle = self.progress.idle(now);
        let ready = match &*self.standing.lock().unwrap_or_else(PoisonError::into_inner) {
            Place::Leading => "leading",
            Place::StandingBy => "standing by",
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
        assert_eq!(health.is_ready(now), Ok("leading"));
        let ended = Observation::TermEnded { reason: "a\nb".to_owned(), unwritten: 0, pause: Duration::ZERO };
        health.waits_for_an_answer(true);
        health.note(&ended);
        assert_eq!(health.is_ready(now), Err("connecting again: a b".to_owned()));
        health.note(&Observation::StandingBy { leader: String::new() });
        assert_eq!(health.is_ready(now), Ok("standing by"));
    }
}
