//! How an attempt ends, and what that means for its delivery.
//!
//! Everything here is pure: the random number is an argument, and no clock is read.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

/// The longest error or response excerpt that is kept, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// The largest result that is kept, in bytes of JSON text.
pub const RESULT_BYTES_MAX: usize = 32_768;
/// The largest result as PostgreSQL stores it, which the table outbox.done checks. A digit may take eight times its text.
const RESULT_STORED_BYTES_MAX: usize = 65_536;

/// How one attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It succeeded; the result, if any, is kept in `outbox.done`.
    Done { result: Option<Value> },
    /// It succeeded, and the handler's own transaction has already written the `outbox.done` row.
    Committed,
    /// Somebody else has settled the delivery or taken the attempt away, and what the handler did is rolled back.
    Lost,
    /// It failed and may succeed later: at `after` if the other side asked for that, else by the retry policy.
    Retry { after: Option<Duration>, failure: Failure },
    /// Not yet: run it again after this time. Spends no attempt of the retry policy.
    Snooze { after: Duration },
    /// The answer comes later, by `outbox.complete` or `outbox.fail`. None within this time is a failure.
    Wait { timeout: Duration },
    /// It failed and will never succeed.
    Dead { failure: Failure },
    /// The target is gone for good, as HTTP's 410 says: the handler is paused, and the delivery waits for its end.
    Gone { failure: Failure },
}

/// What a failure says about the handler's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// It is there and answered: this event was refused.
    #[default]
    Refused,
    /// It was reached and did not do its work (a server error, a broken connection, a time-out), be it for this event or for
    /// all. Counts against the breaker; spends an attempt while that is closed.
    Failing,
    /// It was not reached, so this says nothing about the event. Counts against the breaker and spends no attempt.
    Unreachable,
}

/// What went wrong, as kept for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failure {
    pub error: String,
    /// The beginning of what the other side answered, if it answered.
    pub response: Option<String>,
    pub fault: Fault,
}

impl Failure {
    /// An error without a response. NUL bytes are replaced and the text is cut at [`TEXT_BYTES_MAX`], because
    /// PostgreSQL stores neither NUL nor endless text.
    #[must_use]
    pub fn new(error: impl AsRef<str>) -> Self {
        Self { error: excerpt(error.as_ref()), response: None, fault: Fault::Refused }
    }

    /// The same failure, of this kind.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// The same failure with the other side's response.
    #[must_use]
    pub fn with_response(mut self, response: impl AsRef<str>) -> Self {
        let response = response.as_ref();
        self.response = (!response.is_empty()).then(|| excerpt(response));
        self
    }
}

/// The text as PostgreSQL can store it, without NUL. Of one that is too long the beginning, with a note: at most
/// [`TEXT_BYTES_MAX`] bytes in all. An excerpt is an excerpt of itself.
#[must_use]
pub fn excerpt(text: &str) -> String {
    const NOTE_BYTES_MAX: usize = 64;
    // U+FFFD is three bytes to NUL's one, hence the cut after the replacement.
    let mut kept = beginning(text, TEXT_BYTES_MAX).replace('\0', "\u{fffd}");
    if text.len() > TEXT_BYTES_MAX || kept.len() > TEXT_BYTES_MAX {
        kept.truncate(beginning(&kept, TEXT_BYTES_MAX - NOTE_BYTES_MAX).len());
        // Writing to a string cannot fail.
        let _ = write!(kept, "… ({} bytes in all)", text.len());
    }
    kept
}

/// At most so many bytes of the text, whole characters.
fn beginning(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// When a failed delivery runs again, and when it is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The failure that is the last one: the delivery is `dead` after it. At least 1.
    pub max_attempts: u32,
    /// How the pauses grow.
    pub backoff: Backoff,
    /// The longest pause after the first failure.
    pub base: Duration,
    /// The longest pause after any failure.
    pub max: Duration,
    /// Attempts from `outbox.open` that run at the same time; `None`: as many as the handler's slots.
    pub concurrency: Option<usize>,
    /// Attempts from `outbox.open` that begin in a second; `None`: as many as can.
    pub rate: Option<u32>,
}

/// How the longest pause grows with the number of failures.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Backoff {
    /// `base`, doubled with every further failure.
    #[default]
    Exponential,
    /// `base`, once more with every further failure.
    Linear,
    /// Always `base`.
    Fixed,
    /// These, one after the other; the last one from then on.
    List(Vec<Duration>),
}

impl Default for RetryPolicy {
    /// 12 attempts over about 35 minutes on average: pauses of at most 1 s, 2 s, 4 s … capped at one hour.
    fn default() -> Self {
        Self {
            max_attempts: 12,
            backoff: Backoff::default(),
            base: Duration::from_secs(1),
            max: Duration::from_hours(1),
            concurrency: None,
            rate: None,
        }
    }
}

impl RetryPolicy {
    /// The pause after failure number `failures` (1 is the first), with full jitter and a cap
    /// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>). `random` is in `0.0..1.0`.
    #[must_use]
    pub fn pause(&self, failures: u32, random: f64) -> Duration {
        let before = failures.saturating_sub(1);
        let base = self.base.as_secs_f64();
        let ceiling = match &self.backoff {
            // 2^63 base units exceed any cap; the clamp keeps the power finite.
            Backoff::Exponential => base * 2f64.powi(before.min(63).cast_signed()),
            Backoff::Linear => base * (f64::from(before) + 1.0),
            Backoff::Fixed => base,
            Backoff::List(pauses) => {
                let place = usize::try_from(before).unwrap_or(usize::MAX).min(pauses.len().saturating_sub(1));
                pauses.get(place).copied().unwrap_or_default().as_secs_f64()
            }
        };
        Duration::from_secs_f64(ceiling.min(self.max.as_secs_f64()) * random.clamp(0.0, 1.0))
    }
}

/// What is written for a delivery whose attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Settlement {
    Done {
        result: Option<Value>,
    },
    /// The handler's transaction has written everything.
    Committed,
    /// It is not ours to write.
    Lost,
    Retry {
        after: Duration,
        failure: Failure,
        /// Whether the failure counts towards `max_attempts`.
        spent: bool,
    },
    Snooze {
        after: Duration,
    },
    Wait {
        timeout: Duration,
    },
    Dead {
        failure: Failure,
    },
    /// The handler is paused; the delivery runs again when that is over.
    Pause {
        failure: Failure,
    },
}

/// The word in `outbox.attempt`, and in the metrics, for an attempt that failed and runs again. `spent`: it counts as a failure.
#[must_use]
pub fn failed_as(spent: bool) -> &'static str {
    if spent { "retry" } else { "unreachable" }
}

/// The attempt that ended.
#[derive(Debug, Clone, Copy)]
pub struct Tried {
    /// Its number, from 1.
    pub attempt: u32,
    /// The failures before it.
    pub failures: u32,
    /// A failure of at least this fault is the target's and spends nothing; `None`: every failure counts.
    pub spared: Option<Fault>,
}

impl Tried {
    fn spends(&self, fault: Fault) -> bool {
        match self.spared {
            None => true,
            Some(Fault::Failing) => fault == Fault::Refused,
            Some(_) => fault != Fault::Unreachable,
        }
    }
}

/// Decides what an outcome means.
#[must_use]
pub fn settle(outcome: Outcome, tried: Tried, policy: &RetryPolicy, random: f64) -> Settlement {
    let failures = tried.failures;
    match outcome {
        Outcome::Done { result } => Settlement::Done { result: result.map(bounded) },
        Outcome::Committed => Settlement::Committed,
        Outcome::Snooze { after } => Settlement::Snooze { after: after.clamp(SNOOZE_MIN, PAUSE_MAX) },
        Outcome::Lost => Settlement::Lost,
        Outcome::Wait { timeout } => Settlement::Wait { timeout: timeout.clamp(SNOOZE_MIN, PAUSE_MAX) },
        Outcome::Dead { failure } => Settlement::Dead { failure },
        Outcome::Gone { failure } => Settlement::Pause { failure },
        Outcome::Retry { after, failure } => {
            let spent = tried.spends(failure.fault);
            if spent && failures + 1 >= policy.max_attempts {
                return Settlement::Dead { failure };
            }
            // What spends nothing must not come back at once for ever: its pauses grow with the attempts.
            let nth = if spent { failures + 1 } else { tried.attempt };
            let after = after.map_or_else(|| policy.pause(nth, random), |after| after.min(policy.max));
            Settlement::Retry { after, failure, spent }
        }
    }
}

/// A snooze spends no attempt, so one of no length would run for ever: 100 ms at least.
pub const SNOOZE_MIN: Duration = Duration::from_millis(100);
/// No delivery is put off for longer than this by a handler's answer: 366 days.
pub const PAUSE_MAX: Duration = Duration::from_hours(8784);

/// The result as PostgreSQL can store it: the delivery succeeded, so a result that is too large or holds NUL is
/// replaced by a note rather than turned into a failure.
#[must_use]
pub fn bounded(result: Value) -> Value {
    bounded_as("result", result)
}

/// The same for another value that is kept; `what` names it in the note.
#[must_use]
pub fn bounded_as(what: &str, value: Value) -> Value {
    let text = value.to_string();
    if text.len() > RESULT_BYTES_MAX {
        serde_json::json!({ "outboxd": format!("the {what} had {} bytes; at most {RESULT_BYTES_MAX} are kept", text.len()) })
    } else if stored_bytes(&value) > RESULT_STORED_BYTES_MAX {
        serde_json::json!({ "outboxd": format!("the {what} took more than {RESULT_STORED_BYTES_MAX} bytes as jsonb") })
    } else if has_nul(&value) {
        serde_json::json!({ "outboxd": format!("the {what} held a NUL character, which PostgreSQL cannot store") })
    } else {
        value
    }
}

/// At least as many bytes as a value takes as `jsonb`: a word for each element, key and container, numbers in groups of
/// four digits behind a header, everything aligned to words.
fn stored_bytes(value: &Value) -> usize {
    const WORD: usize = 4;
    let padding = WORD - 1;
    WORD + match value {
        Value::Null | Value::Bool(_) => 0,
        Value::String(text) => text.len(),
        Value::Number(number) => (number.to_string().len() / 4 + 2) * 2 + 2 * WORD + padding,
        Value::Array(values) => WORD + padding + values.iter().map(stored_bytes).sum::<usize>(),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| WORD + name.len() + stored_bytes(value);
            WORD + padding + fields.iter().map(field).sum::<usize>()
        }
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn failed() -> Outcome {
        Outcome::Retry { after: None, failure: Failure::new("no") }
    }

    fn after(failures: u32) -> Tried {
        Tried { attempt: failures + 1, failures, spared: Some(Fault::Unreachable) }
    }

    #[test]
    fn the_last_failure_is_dead_and_keeps_its_error() {
        let policy = RetryPolicy { max_attempts: 3, ..RetryPolicy::default() };
        assert!(matches!(settle(failed(), after(0), &policy, 0.5), Settlement::Retry { .. }));
        assert!(matches!(settle(failed(), after(1), &policy, 0.5), Settlement::Retry { .. }));
        assert_eq!(settle(failed(), after(2), &policy, 0.5), Settlement::Dead { failure: Failure::new("no") });
    }

    #[test]
    fn what_the_target_is_to_blame_for_spends_no_attempt() {
        let policy = RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
        let of = |fault| Outcome::Retry { after: None, failure: Failure::new("no").with_fault(fault) };
        let spared = |spared, fault| {
            let tried = Tried { attempt: 40, failures: 0, spared };
            matches!(settle(of(fault), tried, &policy, 0.5), Settlement::Retry { spent: false, .. })
        };
        for (threshold, refused, failing, unreachable) in [
            (None, false, false, false),
            (Some(Fault::Unreachable), false, false, true),
            (Some(Fault::Failing), false, true, true),
        ] {
            let found = [Fault::Refused, Fault::Failing, Fault::Unreachable].map(|fault| spared(threshold, fault));
            assert_eq!(found, [refused, failing, unreachable], "{threshold:?}");
        }
    }

    #[test]
    fn pauses_grow_as_the_policy_says() {
        let seconds = |backoff, base| {
            let policy = RetryPolicy {
                backoff,
                base: Duration::from_secs(base),
                max: Duration::from_secs(9),
                ..RetryPolicy::default()
            };
            [1, 2, 3, 4, 5].map(|failures| policy.pause(failures, 1.0).as_secs())
        };
        let list = [1, 5, 20].map(Duration::from_secs).to_vec();
        assert_eq!(seconds(Backoff::Exponential, 1), [1, 2, 4, 8, 9]);
        assert_eq!(seconds(Backoff::Linear, 2), [2, 4, 6, 8, 9]);
        assert_eq!(seconds(Backoff::Fixed, 3), [3, 3, 3, 3, 3]);
        assert_eq!(seconds(Backoff::List(list), 0), [1, 5, 9, 9, 9]);
    }

    #[test]
    fn what_the_other_side_asks_for_is_honoured_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let asked = |secs| Outcome::Retry { after: Some(Duration::from_secs(secs)), failure: Failure::default() };
        let pause = |outcome| match settle(outcome, after(0), &policy, 0.0) {
            Settlement::Retry { after, .. } => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(pause(asked(90)), Duration::from_secs(90));
        assert_eq!(pause(asked(1_000_000)), policy.max);
    }

    #[test]
    fn a_result_that_cannot_be_stored_does_not_undo_the_success() {
        let settled = |result| settle(Outcome::Done { result: Some(result) }, after(0), &RetryPolicy::default(), 0.0);
        let zeros = Value::from(vec![0; 16_000]);
        assert!(zeros.to_string().len() < RESULT_BYTES_MAX);
        for result in [Value::from("x".repeat(RESULT_BYTES_MAX)), Value::from("a\0b"), zeros] {
            let Settlement::Done { result: Some(kept) } = settled(result) else { panic!() };
            assert!(kept["outboxd"].is_string());
        }
    }

    /// One attempt of a delivery: how it ends, and what is spared at that moment.
    fn attempts() -> impl Strategy<Value = Vec<(u8, Fault, Option<Fault>)>> {
        let fault = || prop_oneof![Just(Fault::Refused), Just(Fault::Failing), Just(Fault::Unreachable)];
        let spared = prop_oneof![Just(None), Just(Some(Fault::Failing)), Just(Some(Fault::Unreachable))];
        proptest::collection::vec((0u8..8, fault(), spared), 1..60)
    }

    proptest! {
        /// Against a model that only counts.
        #[test]
        fn a_delivery_ends_when_it_succeeds_or_has_spent_its_attempts(
            attempts in attempts(), max_attempts in 1u32..6, random in 0.0f64..1.0,
        ) {
            let policy = RetryPolicy { max_attempts, ..RetryPolicy::default() };
            let (mut failures, mut spent) = (0, 0);
            for (attempt, (how, fault, spared)) in (1..).zip(attempts) {
                let failure = Failure::new("no").with_fault(fault);
                let (outcome, counts) = match how {
                    0 => (Outcome::Snooze { after: Duration::ZERO }, false),
                    1 => (Outcome::Wait { timeout: Duration::from_secs(1) }, false),
                    2 => (Outcome::Gone { failure }, false),
                    3 => (Outcome::Done { result: None }, false),
                    _ => (Outcome::Retry { after: None, failure }, true),
                };
                let is_spared = match fault {
                    Fault::Refused => false,
                    Fault::Failing => spared == Some(Fault::Failing),
                    Fault::Unreachable => spared.is_some(),
                };
                spent += u32::from(counts && !is_spared);
                match settle(outcome, Tried { attempt, failures, spared }, &policy, random) {
                    Settlement::Done { .. } => { prop_assert_eq!(how, 3); break }
                    Settlement::Dead { .. } => { prop_assert_eq!(spent, max_attempts); break }
                    Settlement::Retry { after, spent: counted, .. } => {
                        prop_assert!(counts && after <= policy.max);
                        prop_assert_eq!(counted, !is_spared);
                        failures += u32::from(counted);
                    }
                    Settlement::Snooze { after } => prop_assert!(how == 0 && after >= SNOOZE_MIN),
                    Settlement::Wait { .. } => prop_assert_eq!(how, 1),
                    Settlement::Pause { .. } => prop_assert_eq!(how, 2),
                    other => prop_assert!(false, "{:?}", other),
                }
                prop_assert_eq!(failures, spent);
                prop_assert!(spent < max_attempts, "it should be dead");
            }
        }

        #[test]
        fn a_pause_never_exceeds_the_cap(failures in 0u32.., random in 0.0f64..1.0, base in 0u64..100_000, max in 0u64..10_000_000) {
            let policy = RetryPolicy { base: Duration::from_millis(base), max: Duration::from_millis(max), ..RetryPolicy::default() };
            prop_assert!(policy.pause(failures, random) <= policy.max);
        }

        #[test]
        fn an_excerpt_is_bounded_and_has_no_nul(text in "(\\PC|\0){0,3000}") {
            let kept = excerpt(&text);
            prop_assert!(kept.len() <= TEXT_BYTES_MAX);
            prop_assert!(!kept.contains('\0'));
            prop_assert_eq!(excerpt(&kept), kept);
        }
    }
}
