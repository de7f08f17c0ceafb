//! What systemd is told: ready, reloading, stopping, and that the dispatch loop is alive.
//!
//! Everything here does nothing when the daemon was not started by systemd (no `NOTIFY_SOCKET`).

use std::sync::Mutex;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Feeds the watchdog from the loop that dispatches, never from a timer of its own: a loop that hangs is noticed.
#[derive(Debug)]
pub struct Watchdog {
    /// Half of `WatchdogSec=`, as systemd advises; `None` without a watchdog.
    every: Option<Duration>,
    fed_at: Mutex<Option<Instant>>,
}

impl Watchdog {
    /// Takes the interval that systemd set for this process.
    #[must_use]
    pub fn from_env() -> Self {
        Self { every: sd_notify::watchdog_enabled().map(|every| every / 2), fed_at: Mutex::default() }
    }

    /// The loop has made progress.
    pub fn made(&self, now: Instant) {
        let Some(every) = self.every else { return };
        let mut fed_at = self.fed_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if fed_at.is_none_or(|at| now >= at + every) {
            *fed_at = Some(now);
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// When the loop must have made progress again.
    #[must_use]
    pub fn due_at(&self) -> Option<Instant> {
        let fed_at = *self.fed_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.every.zip(fed_at).map(|(every, at)| at + every)
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

/// The configuration is being read again; [`reloaded`] ends it.
pub fn reloading() {
    let states: Vec<_> = [NotifyState::Reloading].into_iter().chain(NotifyState::monotonic_usec_now()).collect();
    tell(&states);
}

/// The configuration has been read; what the daemon does has not changed by that.
pub fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// The daemon drains.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: waiting for running attempts")]);
}

fn tell(states: &[NotifyState<'_>]) {
    // Nobody to tell is no fault, and there is nothing to do about a socket that went away.
    let _ = sd_notify::notify(states);
}
