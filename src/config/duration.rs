//! Durations as people write them: `500ms`, `1h 30m`, `7d`, `PT5M`. A day has 24 hours, a week has 7 days.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};

use super::text::quote;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error(r#"{} is not a duration; write for example "500ms", "10s", "1h 30m" or "7d""#, quote(.0))]
    Unreadable(String),
    #[error("{} is negative; a duration counts forward", quote(.0))]
    Negative(String),
    #[error("{} has months or years, which differ in length; write days or weeks", quote(.0))]
    Calendar(String),
}

const SECONDS_PER_DAY: u64 = 86_400;
/// The longest duration: as many days as the parser takes, so that what it reads can be written in days, and read again.
const DAYS_MAX: u64 = 7_304_484;

/// Reads the "friendly" format (`1h 30m`, `2 weeks`) and ISO 8601 (`PT5M`).
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let span: Span = text.parse().map_err(|_| DurationError::Unreadable(text.to_owned()))?;
    if span.is_negative() {
        return Err(DurationError::Negative(text.to_owned()));
    }
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(DurationError::Calendar(text.to_owned()));
    }
    span.to_duration(SpanRelativeTo::days_are_24_hours())
        .and_then(Duration::try_from)
        .ok()
        .filter(|duration| duration.as_secs() / SECONDS_PER_DAY <= DAYS_MAX)
        .ok_or_else(|| DurationError::Unreadable(text.to_owned()))
}

/// The shortest text that [`parse`] reads as `duration`. Days appear from two days on, so 24 hours stay `24h`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    let days = if seconds < 2 * SECONDS_PER_DAY { 0 } else { seconds / SECONDS_PER_DAY };
    let rest = seconds - days * SECONDS_PER_DAY;
    let parts = [
        (days, "d"),
        (rest / 3600, "h"),
        (rest / 60 % 60, "m"),
        (rest % 60, "s"),
        (u64::from(nanos / 1_000_000), "ms"),
        (u64::from(nanos / 1000 % 1000), "us"),
        (u64::from(nanos % 1000), "ns"),
    ];
    let mut text = String::new();
    for (number, unit) in parts.into_iter().filter(|&(number, _)| number > 0) {
        let space = if text.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{space}{number}{unit}");
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}
