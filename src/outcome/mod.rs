//! How an attempt ends, and what that means for its delivery.
//!
//! Everything here is pure: the random number is an argument, and no clock is read.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use crate::emit::{self, Emit, has_nul};

/// The longest error or response excerpt that is kept, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// The largest result that is kept, in bytes of JSON text.
pub const RESULT_BYTES_MAX: usize = 32_768;
/// The largest result as PostgreSQL stores it, which the table outbox.done checks. A digit may take eight times its text.
const RESULT_STORED_BYTES_MAX: usize = 65_536;

/// How one attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It succeeded; the result, if any, is kept in `outbox.done`, and the events are emitted in the same transaction.
    Done { result: Option<Value>, emit: Vec<Emit> },
    /// It succeeded, and the handler's own transaction has already written the `outbox.done` row, with this result.
    Committed { result: Option<Value> },
    /// Somebody else has settled the delivery or taken the attempt away, and what the handler did is rolled back.
    Lost,
    /// It failed and may succeed later: at `after` if the other side asked for that, else by the retry policy.
    Retry { after: Option<Duration>, failure: Failure },
    /// Not yet: ask again after this time, or when the handler's [`PollPolicy`] says. Spends no attempt of the retry policy.
    Snooze { after: Option<Duration> },
    /// The answer comes later, by a callback, `outbox.complete` or `outbox.fail`, or when the handler is asked again, if it has a
    /// [`PollPolicy`]. None within this time is a failure; if it is left out, within that of the policy, or [`WAIT_DEFAULT`].
    Wait { timeout: Option<Duration> },
    /// It failed and will never succeed.
    Dead { failure: Failure },
    /// The target is gone for good, as HTTP's 410 says: the handler is paused, and the delivery waits for its end.
    Gone { failure: Failure },
}

impl Outcome {
    /// It succeeded, without a result, and emits nothing.
    #[must_use]
    pub fn done() -> Self {
        Self::Done { result: None, emit: Vec::new() }
    }

    /// It succeeded with this result, and emits nothing.
    #[must_use]
    pub fn done_with(result: impl Into<Value>) -> Self {
        Self::Done { result: Some(result.into()), emit: Vec::new() }
    }

    /// What it says about the handler's target.
    ///
    /// # Errors
    /// If it says something against it.
    pub fn verdict(&self) -> Result<(), Fault> {
        match self {
            Self::Retry { failure, .. } => Err(failure.fault),
            _ => Ok(()),
        }
    }
}

/// What a failure says about the handler's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
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

/// How often a handler that answers "not yet" is asked again, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollPolicy {
    /// The longest pause before it is asked for the second time; doubled every time.
    pub base: Duration,
    /// The longest pause of all.
    pub max: Duration,
    /// When it has not answered by then, counted from the first time, that is one failure.
    pub timeout: Duration,
}

impl Default for PollPolicy {
    fn default() -> Self {
        Self { base: Duration::from_secs(5), max: Duration::from_mins(5), timeout: WAIT_DEFAULT }
    }
}

impl PollPolicy {
    /// The pause after it was asked so many times, the upper half of which is left to chance. `random` is in `0.0..1.0`.
    #[must_use]
    pub fn pause(&self, polls: u32, random: f64) -> Duration {
        let ceiling = self.base.as_secs_f64() * 2f64.powi(polls.saturating_sub(1).min(63).cast_signed());
        Duration::from_secs_f64(ceiling.min(self.max.as_secs_f64()) * (1.0 + random.clamp(0.0, 1.0)) / 2.0)
    }
}

/// A handler that has answered "not yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// So often.
    pub polls: u32,
    /// What is left of the time in which it must answer; `None`: as much as it likes, or it was not asked yet.
    pub left: Option<Duration>,
}

/// What is written for a delivery whose attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Settlement {
    Done {
        result: Option<Value>,
        emit: Vec<Emit>,
    },
    /// The handler's transaction has written everything.
    Committed {
        result: Option<Value>,
    },
    /// It is not ours to write.
    Lost,
    Retry {
        after: Duration,
        failure: Failure,
        /// Whether the failure counts towards `max_attempts`.
        spent: bool,
        asked: Asked,
    },
    Snooze {
        after: Duration,
        asked: Asked,
    },
    /// It is asked again, or given up, after this time.
    Wait {
        after: Duration,
        asked: Asked,
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
    pub asked: Asked,
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

/// How a handler's deliveries go on that have not succeeded.
#[derive(Debug, Clone, Copy)]
pub struct Policies<'a> {
    pub retry: &'a RetryPolicy,
    pub poll: Option<&'a PollPolicy>,
}

/// Decides what an outcome means.
#[must_use]
pub fn settle(outcome: Outcome, tried: Tried, policies: Policies<'_>, random: f64) -> Settlement {
    let (failures, policy) = (tried.failures, policies.retry);
    // Where the answer is no good, or comes no more.
    let failed = |error: String, asked| {
        let outcome = Outcome::Retry { after: None, failure: Failure::new(error) };
        settle(outcome, Tried { asked, ..tried }, policies, random)
    };
    match outcome {
        Outcome::Done { result, emit } => match emit::check(&emit) {
            Ok(()) => Settlement::Done { result: result.map(bounded), emit },
            Err(error) => failed(error, tried.asked),
        },
        Outcome::Committed { result } => Settlement::Committed { result },
        Outcome::Lost => Settlement::Lost,
        Outcome::Snooze { after } => match (after, policies.poll) {
            (Some(after), None) => {
                Settlement::Snooze { after: after.clamp(SNOOZE_MIN, PAUSE_MAX), asked: Asked::default() }
            }
            (None, None) => {
                let rule = "its answer needs \"after\", or its configuration `poll`";
                failed(format!("the handler is to be asked again and nobody says when: {rule}"), tried.asked)
            }
            (after, Some(poll)) => match asked_again(tried.asked, after, poll.timeout, Some(poll), random) {
                Ok((after, asked)) => Settlement::Snooze { after, asked },
                Err(error) => failed(error, Asked::default()),
            },
        },
        Outcome::Wait { timeout } => {
            let own = policies.poll.map_or(WAIT_DEFAULT, |poll| poll.timeout);
            // Without a poll it is asked anew only because somebody wanted that, and says anew how long it takes.
            let asked = if policies.poll.is_some() { tried.asked } else { Asked::default() };
            match asked_again(asked, None, timeout.unwrap_or(own), policies.poll, random) {
                Ok((after, asked)) => Settlement::Wait { after, asked },
                Err(error) => failed(error, Asked::default()),
            }
        }
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
            Settlement::Retry { after, failure, spent, asked: tried.asked }
        }
    }
}

/// When to ask again a handler that has answered "not yet", or that its time is over.
fn asked_again(
    asked: Asked,
    after: Option<Duration>,
    timeout: Duration,
    poll: Option<&PollPolicy>,
    random: f64,
) -> Result<(Duration, Asked), String> {
    let polls = asked.polls.saturating_add(1);
    let left = asked.left.unwrap_or_else(|| timeout.clamp(SNOOZE_MIN, PAUSE_MAX));
    if left.is_zero() {
        return Err(format!("no answer came within the time, though the handler was asked {polls} times"));
    }
    // It is asked for the last time when its time is over.
    let pause = after.or_else(|| poll.map(|poll| poll.pause(polls, random))).unwrap_or(left);
    Ok((pause.max(SNOOZE_MIN).min(left), Asked { polls, left: Some(left) }))
}

/// How long a delivery waits for its answer if nobody says: a day.
pub const WAIT_DEFAULT: Duration = Duration::from_hours(24);
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

#[cfg(test)]
mod tests;
