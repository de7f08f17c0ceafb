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
    /// It failed and will never succeed.
    Dead { failure: Failure },
}

/// What went wrong, as kept for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failure {
    pub error: String,
    /// The beginning of what the other side answered, if it answered.
    pub response: Option<String>,
}

impl Failure {
    /// An error without a response. NUL bytes are replaced and the text is cut at [`TEXT_BYTES_MAX`], because
    /// PostgreSQL stores neither NUL nor endless text.
    #[must_use]
    pub fn new(error: impl AsRef<str>) -> Self {
        Self { error: excerpt(error.as_ref()), response: None }
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
    /// The longest pause after the first failure; it doubles with every further failure.
    pub base: Duration,
    /// The longest pause after any failure.
    pub max: Duration,
}

impl Default for RetryPolicy {
    /// 12 attempts over about 35 minutes on average: pauses of at most 1 s, 2 s, 4 s … capped at one hour.
    fn default() -> Self {
        Self { max_attempts: 12, base: Duration::from_secs(1), max: Duration::from_hours(1) }
    }
}

impl RetryPolicy {
    /// The pause after failure number `failures` (1 is the first): exponential with full jitter and a cap
    /// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>). `random` is in `0.0..1.0`.
    #[must_use]
    pub fn pause(&self, failures: u32, random: f64) -> Duration {
        // 2^63 base units exceed any cap; the clamp keeps the power finite.
        let doublings = failures.saturating_sub(1).min(63);
        let ceiling = (self.base.as_secs_f64() * 2f64.powi(doublings.cast_signed())).min(self.max.as_secs_f64());
        Duration::from_secs_f64(ceiling * random.clamp(0.0, 1.0))
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
    },
    Snooze {
        after: Duration,
    },
    Dead {
        failure: Failure,
    },
}

/// Decides what an outcome means. `failures` counts the failures before this attempt.
#[must_use]
pub fn settle(outcome: Outcome, failures: u32, policy: &RetryPolicy, random: f64) -> Settlement {
    match outcome {
        Outcome::Done { result } => Settlement::Done { result: result.map(bounded) },
        Outcome::Committed => Settlement::Committed,
        Outcome::Snooze { after } => Settlement::Snooze { after: after.clamp(SNOOZE_MIN, PAUSE_MAX) },
        Outcome::Lost => Settlement::Lost,
        Outcome::Dead { failure } => Settlement::Dead { failure },
        Outcome::Retry { failure, .. } if failures + 1 >= policy.max_attempts => Settlement::Dead { failure },
        Outcome::Retry { after: Some(after), failure } => Settlement::Retry { after: after.min(policy.max), failure },
        Outcome::Retry { after: None, failure } => {
            Settlement::Retry { after: policy.pause(failures + 1, random), failure }
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
    let text = result.to_string();
    if text.len() > RESULT_BYTES_MAX {
        serde_json::json!({ "outboxd": format!("the result had {} bytes; at most {RESULT_BYTES_MAX} are kept", text.len()) })
    } else if stored_bytes(&result) > RESULT_STORED_BYTES_MAX {
        serde_json::json!({ "outboxd": format!("the result took more than {RESULT_STORED_BYTES_MAX} bytes as jsonb") })
    } else if has_nul(&result) {
        serde_json::json!({ "outboxd": "the result held a NUL character, which PostgreSQL cannot store" })
    } else {
        result
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

    #[test]
    fn the_last_failure_is_dead_and_keeps_its_error() {
        let policy = RetryPolicy { max_attempts: 3, ..RetryPolicy::default() };
        assert!(matches!(settle(failed(), 0, &policy, 0.5), Settlement::Retry { .. }));
        assert!(matches!(settle(failed(), 1, &policy, 0.5), Settlement::Retry { .. }));
        assert_eq!(settle(failed(), 2, &policy, 0.5), Settlement::Dead { failure: Failure::new("no") });
    }

    #[test]
    fn what_the_other_side_asks_for_is_honoured_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let asked = |secs| Outcome::Retry { after: Some(Duration::from_secs(secs)), failure: Failure::default() };
        let after = |outcome| match settle(outcome, 0, &policy, 0.0) {
            Settlement::Retry { after, .. } => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(after(asked(90)), Duration::from_secs(90));
        assert_eq!(after(asked(1_000_000)), policy.max);
    }

    #[test]
    fn a_result_that_cannot_be_stored_does_not_undo_the_success() {
        let settled = |result| settle(Outcome::Done { result: Some(result) }, 0, &RetryPolicy::default(), 0.0);
        let zeros = Value::from(vec![0; 16_000]);
        assert!(zeros.to_string().len() < RESULT_BYTES_MAX);
        for result in [Value::from("x".repeat(RESULT_BYTES_MAX)), Value::from("a\0b"), zeros] {
            let Settlement::Done { result: Some(kept) } = settled(result) else { panic!() };
            assert!(kept["outboxd"].is_string());
        }
    }

    proptest! {
        #[test]
        fn a_pause_never_exceeds_the_cap(failures in 0u32.., random in 0.0f64..1.0, base in 0u64..100_000, max in 0u64..10_000_000) {
            let policy = RetryPolicy { max_attempts: 5, base: Duration::from_millis(base), max: Duration::from_millis(max) };
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
