//! What systemd is told: ready, reloading, stopping, and that the dispatch loop is alive.
//!
//! Everything here does nothing when the daemon was not started by systemd (no `NOTIFY_SOCKET`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Feeds the watchdog from the loop that dispatches, never from a timer of its own: a loop that hangs is noticed. When the loop
/// made progress last is known without systemd, too.
#[derive(Debug)]
pub struct Watchdog {
    /// Half of `WatchdogSec=`, as systemd advises; `None` without a watchdog.
    every: Option<Duration>,
    fed_at: Mutex<Instant>,
    began: Instant,
    /// When progress was made last, in milliseconds since then.
    made: AtomicU64,
}

impl Watchdog {
    /// Takes the interval that systemd set for this process.
    #[must_use]
    pub fn from_env() -> Self {
        let (now, every) = (Instant::now(), sd_notify::watchdog_enabled().map(|every| every / 2));
        Self { every, fed_at: Mutex::new(now), began: now, made: AtomicU64::new(0) }
    }

    /// The loop has made progress.
    pub fn made(&self, now: Instant) {
        self.made.store(self.millis(now), Ordering::Relaxed);
        let Some(every) = self.every else { return };
        let mut fed_at = self.fed_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if now >= *fed_at + every {
            *fed_at = now;
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// How long ago the loop made progress.
    #[must_use]
    pub fn idle(&self, now: Instant) -> Duration {
        Duration::from_millis(self.millis(now).saturating_sub(self.made.load(Ordering::Relaxed)))
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// When the loop must have made progress again.
    #[must_use]
    pub fn due_at(&self) -> Option<Instant> {
        let fed_at = *self.fed_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.every.map(|every| fed_at + every)
    }
}

/// The daemon is up: it dispatches, or stands by for another that does.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What the daemon does now, for `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The configuration has been read again, or refused.
pub fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`reloaded`] ends it.
pub fn reloading() {
    let states: Vec<_> = [NotifyState::Reloading].into_iter().chain(NotifyState::monotonic_usec_now()).collect();
    tell(&states);
}

/// The daemon drains.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: waiting for running attempts")]);
}

fn tell(states: &[NotifyState<'_>]) {
    // Nobody to tell is no fault, and there is nothing to do about a socket that went away.
    let _ = sd_notify::notify(states);
}
