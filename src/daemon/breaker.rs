//! The circuit breaker of one target: how many attempts are worth making. What cannot be reached is not called, except
//! by one probe at a time.
//!
//! ```text
//!             half of the last 20 failed            the pause is over
//!     closed ────────────────────────────► open ─────────────────────► one probe
//!        ▲                                 ▲  ▲                         │     │
//!        │                                 │  └── it failed ────────────┘     │ the target
//!        │ 64 at the same time             │                                  │ is there
//!        └─────────────────────── 2, 4, 8 … at the same time ◄────────────────┘
//!                                          │
//!                                          └── half of these failed: open
//! ```
//!
//! The window counts attempts, not time, so that a target with little to do is judged like a busy one: the model is
//! `COUNT_BASED` of resilience4j (<https://resilience4j.readme.io/docs/circuitbreaker>).
//!
//! Pure: the clock and the random number are arguments. It knows nothing of deliveries, and never asks what runs: it is
//! told.

use std::time::{Duration, Instant};

use crate::outcome::Fault;

/// Attempts that the failure rate is taken of.
const WINDOW: u32 = 20;
/// With fewer of them there is no rate: two failures after a start are no outage.
const WINDOW_MIN: u32 = 5;
/// A target that could take so many attempts at the same time is well again.
const RAMP_DONE: usize = 64;
/// The pause before the first probe of an outage; doubled with every further one.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause, before it is spread.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// So long after the beginning of an outage a probe that fails spends no attempt.
const SPARED_FOR: Duration = Duration::from_hours(1);
/// By how much a pause is longer or shorter, so that the daemons of many databases do not probe one target in step.
const SPREAD: f64 = 0.2;

/// What an operator is told, once for every outage each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Opened,
    Closed,
}

/// See the module's documentation.
///
/// An attempt is named by the moment it began. Whoever runs attempts asks [`room`](Self::room) before each of them and
/// tells [`began`](Self::began) and then either [`ended`](Self::ended) or [`withdrawn`](Self::withdrawn). Attempts that
/// began before the breaker last opened say nothing about the time since then and are ignored, so they hold up no probe.
#[derive(Debug)]
pub struct Breaker {
    phase: Phase,
    window: Window,
    /// Attempts that began before are ignored; `None`: all count.
    counts_from: Option<Instant>,
    /// Attempts that count and have not ended.
    running: usize,
    /// Pauses of this outage.
    pauses: u32,
    /// When it began; `None`: there is none.
    since: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed,
    /// No attempt until then, one from then on.
    Open {
        until: Instant,
    },
    /// A probe has found the target. So many may run at the same time.
    Ramping {
        limit: usize,
    },
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new()
    }
}

impl Breaker {
    /// Closed, with nothing counted.
    #[must_use]
    pub fn new() -> Self {
        Self { phase: Phase::Closed, window: Window::default(), counts_from: None, running: 0, pauses: 0, since: None }
    }

    /// In an outage that has been told of, after a restart: the first probe may begin at once.
    #[must_use]
    pub fn open(now: Instant) -> Self {
        Self { phase: Phase::Open { until: now }, counts_from: Some(now), since: Some(now), ..Self::new() }
    }

    /// Attempts that may run at the same time, not counting those that are ignored.
    #[must_use]
    pub fn limit(&self, now: Instant) -> usize {
        match self.phase {
            Phase::Closed => usize::MAX,
            Phase::Open { until } => usize::from(now >= until),
            Phase::Ramping { limit } => limit,
        }
    }

    /// Attempts that may begin now.
    #[must_use]
    pub fn room(&self, now: Instant) -> usize {
        self.limit(now).saturating_sub(self.running)
    }

    /// When there is room without anybody telling anything: the end of the pause.
    #[must_use]
    pub fn next(&self, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::Open { until } if until > now => Some(until),
            _ => None,
        }
    }

    /// Whether there is an outage. It ends when the breaker closes.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Closed)
    }

    /// The least fault that spends no attempt of a delivery: what fails in an outage is the target's. Not for ever: when
    /// nothing but poison is left, every probe fails, and that must end.
    #[must_use]
    pub fn spares(&self, now: Instant) -> Fault {
        match self.since {
            Some(since) if now < since + SPARED_FOR => Fault::Failing,
            _ => Fault::Unreachable,
        }
    }

    /// An attempt has begun.
    pub fn began(&mut self, now: Instant) {
        if self.counts(now) {
            self.running += 1;
        }
    }

    /// An attempt has ended without telling anything about the target: it was cut off, or never reached the handler. If
    /// it was the probe, another one may begin.
    pub fn withdrawn(&mut self, began: Instant) {
        if self.counts(began) {
            self.running = self.running.saturating_sub(1);
        }
    }

    /// An attempt has ended. Whatever is not a failure of the target proves that it is there: a snooze, a wait and a dead
    /// delivery are `Ok`, and [`Fault::Refused`] is as good.
    pub fn ended(&mut self, began: Instant, result: Result<(), Fault>, now: Instant, random: f64) -> Option<Change> {
        if !self.counts(began) {
            return None;
        }
        self.running = self.running.saturating_sub(1);
        let failed = matches!(result, Err(Fault::Failing | Fault::Unreachable));
        self.window.add(failed);
        match self.phase {
            Phase::Closed if self.window.is_bad() => {
                self.pause(now, random);
                Some(Change::Opened)
            }
            Phase::Closed => None,
            Phase::Open { .. } if failed => {
                self.pause(now, random);
                None
            }
            Phase::Ramping { .. } if self.window.is_bad() => {
                self.pause(now, random);
                None
            }
            Phase::Open { .. } => self.ramp(2),
            // One failure among successes does not end the ramp: a target that fails now and then would never leave it.
            Phase::Ramping { limit } => self.ramp(if failed { (limit / 2).max(1) } else { limit * 2 }),
        }
    }

    fn counts(&self, began: Instant) -> bool {
        self.counts_from.is_none_or(|from| began >= from)
    }

    fn pause(&mut self, now: Instant, random: f64) {
        self.since = self.since.or(Some(now));
        let doubled = PAUSE.saturating_mul(2u32.saturating_pow(self.pauses));
        let until = now + doubled.min(PAUSE_MAX).mul_f64(1.0 - SPREAD + 2.0 * SPREAD * random.clamp(0.0, 1.0));
        self.pauses = self.pauses.saturating_add(1);
        self.phase = Phase::Open { until };
        self.window = Window::default();
        // Nothing begins during the pause, so what runs now is ignored from here on.
        self.counts_from = Some(until);
        self.running = 0;
    }

    fn ramp(&mut self, limit: usize) -> Option<Change> {
        if limit < RAMP_DONE {
            self.phase = Phase::Ramping { limit };
            return None;
        }
        self.phase = Phase::Closed;
        self.window = Window::default();
        self.pauses = 0;
        self.since = None;
        Some(Change::Closed)
    }
}

/// The last attempts: a bit each, 1 for a failure, the newest lowest.
#[derive(Debug, Default)]
struct Window {
    failures: u32,
    counted: u32,
}

impl Window {
    fn add(&mut self, failed: bool) {
        self.failures = (self.failures << 1 | u32::from(failed)) & ((1 << WINDOW) - 1);
        self.counted = (self.counted + 1).min(WINDOW);
    }

    fn is_bad(&self) -> bool {
        self.counted >= WINDOW_MIN && self.failures.count_ones() * 2 >= self.counted
    }
}

#[cfg(test)]
mod tests;
