//! `[alert.NAME]`: what somebody is to be told of, by an event.

use std::fmt::{self, Write as _};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::reader::{Field, Reader, Table};
use super::text::quote;
use super::{duration, keys};

/// One `[alert.NAME]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertConfig {
    pub name: Arc<str>,
    pub condition: Condition,
    /// The handler that it is about; `None`: each.
    pub handler: Option<Arc<str>>,
    /// It must be so, or not be so any more, for this long.
    pub lasting: Duration,
}

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// More deliveries of the handler are dead; they are counted up to 10,000.
    Dead { above: u32 },
    /// More of its deliveries wait: read, unread, or to run again.
    Backlog { above: u32 },
    /// The oldest of its deliveries that could begin has waited for longer.
    Oldest { above: Duration },
    /// Its target cannot be reached, or fails.
    BreakerOpen,
    /// The daemon does not hear the bell.
    ListenerDeaf,
}

const LASTING: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24);
const OLDEST: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(30 * 24);
const DEAD: RangeInclusive<u32> = 0..=9_999;
const BACKLOG: RangeInclusive<u32> = 0..=1_000_000_000;

impl Condition {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dead { .. } => "dead",
            Self::Backlog { .. } => "backlog",
            Self::Oldest { .. } => "oldest",
            Self::BreakerOpen => "breaker_open",
            Self::ListenerDeaf => "listener_deaf",
        }
    }

    /// The number above which it is so; of a duration the seconds.
    #[must_use]
    pub fn above(self) -> Option<f64> {
        match self {
            Self::Dead { above } | Self::Backlog { above } => Some(above.into()),
            Self::Oldest { above } => Some(above.as_secs_f64()),
            Self::BreakerOpen | Self::ListenerDeaf => None,
        }
    }
}

pub(super) fn read(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<AlertConfig> {
    const WHEN: &str = "write \"dead\", \"backlog\", \"oldest\", \"breaker_open\" or \"listener_deaf\"";
    let table = reader.table(field, "write a table: [alert.NAME]")?;
    reader.know(&table, keys::ALERT);
    let mut lasting = Duration::from_mins(1);
    reader.set_duration(&table, "for", &LASTING, &mut lasting);
    let Some(when) = reader.field(&table, "when") else {
        reader.lacks(&table, format!("`when` is missing, what is watched; {WHEN}"));
        return None;
    };
    let words = ["dead", "backlog", "oldest", "breaker_open", "listener_deaf"].map(|word| (word, word));
    let word = reader.choice(&when, "what can be watched", &words, WHEN)?;
    let condition = condition(reader, &table, word)?;
    let handler = reader.field(&table, "handler").and_then(|field| {
        let name = reader.string(&field, "write the name of a handler")?;
        if condition == Condition::ListenerDeaf {
            return reader.refused(&field, "the listener is that of all handlers; remove it".into());
        }
        Some(Arc::from(name))
    });
    Some(AlertConfig { name: Arc::from(field.name), condition, handler, lasting })
}

fn condition(reader: &mut Reader<'_>, table: &Table<'_>, word: &str) -> Option<Condition> {
    let above = reader.field(table, "above");
    let count = |reader: &mut Reader<'_>, range| above.as_ref().map(|field| reader.integer(field, range));
    match (word, &above) {
        ("dead", _) => Some(Condition::Dead { above: count(reader, DEAD).unwrap_or(Some(0))? }),
        ("backlog", Some(_)) => Some(Condition::Backlog { above: count(reader, BACKLOG)?? }),
        ("oldest", Some(field)) => Some(Condition::Oldest { above: reader.duration(field, &OLDEST, "")? }),
        ("backlog" | "oldest", None) => {
            reader.lacks(table, "`above` is missing; write a number for a backlog, a duration for the oldest");
            None
        }
        (_, Some(field)) => reader.refused(field, format!("{} is so or not; remove `above`", quote(word))),
        ("breaker_open", None) => Some(Condition::BreakerOpen),
        _ => Some(Condition::ListenerDeaf),
    }
}

/// The table as TOML.
pub(super) fn write(out: &mut String, alert: &AlertConfig, key: &str, handler: Option<&str>) -> fmt::Result {
    let AlertConfig { condition, lasting, .. } = alert;
    write!(out, "\n[alert.{key}]\n")?;
    writeln!(out, "when = \"{}\"", condition.as_str())?;
    if let Some(handler) = handler {
        writeln!(out, "handler = {handler}")?;
    }
    match condition {
        Condition::Dead { above } | Condition::Backlog { above } => writeln!(out, "above = {above}")?,
        Condition::Oldest { above } => writeln!(out, "above = \"{}\"", duration::format(*above))?,
        Condition::BreakerOpen | Condition::ListenerDeaf => {}
    }
    writeln!(out, "for = \"{}\"", duration::format(*lasting))
}
