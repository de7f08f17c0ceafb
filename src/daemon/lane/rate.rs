//! How many attempts may begin in a time: a token bucket that holds one second's worth, and one at least
//! (<https://en.wikipedia.org/wiki/Token_bucket>). Pure.

use std::time::{Duration, Instant};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    capacity: f64,
    tokens: f64,
    at: Instant,
}

impl Rate {
    /// A full bucket.
    #[must_use]
    pub(super) fn new(per_second: f64, now: Instant) -> Self {
        let capacity = per_second.max(1.0);
        Self { per_second, capacity, tokens: capacity, at: now }
    }

    /// Whether there is none, as of the last time that somebody asked.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.tokens < 1.0
    }

    /// How many there are.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the bucket holds a small positive number"
    )]
    pub(super) fn there(&mut self, now: Instant) -> usize {
        self.fill(now);
        self.tokens as usize
    }

    /// Takes as many as there are, at most so many.
    pub(super) fn take(&mut self, wanted: usize, now: Instant) -> usize {
        let taken = wanted.min(self.there(now));
        self.tokens -= f64::from(u32::try_from(taken).unwrap_or(u32::MAX));
        taken
    }

    /// Gives back what was not used.
    pub(super) fn give_back(&mut self, unused: usize) {
        self.tokens = (self.tokens + f64::from(u32::try_from(unused).unwrap_or(u32::MAX))).min(self.capacity);
    }

    /// When there is one.
    #[must_use]
    pub(super) fn next(&self) -> Instant {
        let lacking = (1.0 - self.tokens).max(0.0);
        // A hair later, so that rounding does not find the bucket one nanosecond short.
        self.at + Duration::from_secs_f64(lacking / self.per_second) + Duration::from_micros(1)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.capacity);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_no_more_than_the_rate_after_the_first_burst() {
        let start = Instant::now();
        let mut rate = Rate::new(10.0, start);
        assert_eq!(rate.take(50, start), 10);
        assert_eq!(rate.take(50, start), 0);
        assert_eq!(rate.take(50, start + Duration::from_millis(500)), 5);
        assert_eq!(rate.take(50, start + Duration::from_secs(100)), 10);
    }

    #[test]
    fn what_was_not_used_comes_back_and_the_next_one_is_there_when_it_says() {
        let start = Instant::now();
        let mut rate = Rate::new(4.0, start);
        assert_eq!(rate.take(4, start), 4);
        assert_eq!(rate.take(1, rate.next()), 1);
        rate.give_back(3);
        assert_eq!(rate.take(9, rate.next()), 3);
    }

    #[test]
    fn a_rate_below_one_a_second_lets_one_begin_and_then_the_next_in_its_time() {
        let start = Instant::now();
        let mut rate = Rate::new(1.0 / 6.0, start);
        assert_eq!((rate.take(5, start), rate.is_empty()), (1, true));
        assert_eq!(rate.take(1, start + Duration::from_secs(5)), 0);
        assert_eq!(rate.take(5, rate.next()), 1);
    }
}
