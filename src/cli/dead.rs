//! What the verbs about many dead deliveries share: which ones are meant, and times as an operator writes them.

use clap::Args;
use jiff::{SignedDuration, Timestamp};

use super::Failure;
use super::output::{print, print_json};
use crate::config::duration;
use crate::store::operate::DeadLetters;
use crate::topic::Pattern;

/// Which dead deliveries.
#[derive(Debug, Args)]
#[group(id = "filter", multiple = true)]
pub(super) struct Filter {
    /// Only those of this handler
    #[arg(long, value_name = "HANDLER")]
    handler: Option<String>,
    /// Only events of these topics: a pattern, `*` is one word, `#` any number of words
    #[arg(long, value_name = "PATTERN")]
    topic: Option<Pattern>,
    /// Only those given up since then: RFC 3339, or so long ago as in "2h"
    #[arg(long, value_name = "TIME", value_parser = past)]
    since: Option<Timestamp>,
    /// Only those given up before then
    #[arg(long, value_name = "TIME", value_parser = past)]
    until: Option<Timestamp>,
    /// Only those whose last error has this text in it
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl Filter {
    /// What was written. Nothing is not everything: that must be asked for by name.
    pub(super) fn meant(self, verb: &str) -> Result<DeadLetters, Failure> {
        let Self { handler, topic, since, until, error, all } = self;
        let which = DeadLetters { handler, topic: topic.map(|topic| topic.to_string()), since, until, error };
        let DeadLetters { handler, topic, since, until, error } = &which;
        let filtered = handler.is_some() || topic.is_some() || since.is_some() || until.is_some() || error.is_some();
        match (filtered, all) {
            (false, false) => Err(Failure::with_code(
                2,
                format!(
                    "{verb} needs --handler, --topic, --since, --until or --error; --all means every dead delivery"
                ),
            )),
            (true, true) => Err(Failure::with_code(2, "--all goes with no filter")),
            _ => Ok(which),
        }
    }
}

/// `1 dead delivery`, `5 dead deliveries`.
fn counted(count: i64) -> String {
    if count == 1 { "1 dead delivery".to_owned() } else { format!("{count} dead deliveries") }
}

/// Says how many fit, before anything is done to them; whether that was all that was asked for.
pub(super) fn previewed(fit: i64, done: &str, dry_run: bool, json: bool) -> Result<bool, Failure> {
    if !json {
        print(&format!("{} fit{}\n", counted(fit), if fit == 1 { "s" } else { "" }))?;
    } else if dry_run {
        print_json(&serde_json::json!({ "fit": fit, done: 0 }))?;
    }
    Ok(dry_run)
}

/// Nothing was there to do something to.
pub(super) fn none_fits() -> Failure {
    Failure::new("no dead delivery fits; `outboxd status` counts them, `outboxd events --state dead` lists them")
}

/// RFC 3339, or a duration ago.
pub(super) fn past(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let before = duration::parse(text)
        .map_err(|_| "write a time as in 2030-01-31T08:00:00Z, or how long ago as in 2h or 3d".to_owned())?;
    SignedDuration::try_from(before)
        .ok()
        .and_then(|before| Timestamp::now().checked_sub(before).ok())
        .ok_or_else(|| "so long ago there was nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::past;

    #[test]
    fn a_time_is_a_moment_or_a_duration_ago() {
        assert_eq!(past("2030-01-31T08:00:00Z").unwrap().to_string(), "2030-01-31T08:00:00Z");
        assert_eq!(past("2030-01-31T08:00:00+02:00").unwrap().to_string(), "2030-01-31T06:00:00Z");
        let (before, then, after) = (Timestamp::now(), past("2h").unwrap(), Timestamp::now());
        let two_hours = SignedDuration::from_hours(2);
        assert!(before - two_hours <= then && then <= after - two_hours, "{then}");
        for wrong in ["", "yesterday", "-2h", "2030-01-31", "999999999 weeks"] {
            assert!(past(wrong).is_err(), "{wrong}");
        }
    }
}
