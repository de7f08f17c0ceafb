//! `outboxd replay HANDLER`: events that are in the log are handed to a handler again.

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::dead::past;
use super::output::{print, print_json};
use super::redrive::rate;
use super::{Failure, Global};
use crate::store::operate::Replay as Which;
use crate::topic::Pattern;

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// The handler's name
    handler: String,
    /// Only events of these topics: a pattern, `*` is one word, `#` any number of words
    #[arg(long, value_name = "PATTERN")]
    topic: Option<Pattern>,
    /// Only events with this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only events created since then: RFC 3339, or so long ago as in "2h"
    #[arg(long, value_name = "TIME", value_parser = past)]
    since: Option<Timestamp>,
    /// Only events created before then
    #[arg(long, value_name = "TIME", value_parser = past)]
    until: Option<Timestamp>,
    /// Only events with this id or a higher one
    #[arg(long, value_name = "ID")]
    from_id: Option<i64>,
    /// Only events with this id or a lower one
    #[arg(long, value_name = "ID")]
    to_id: Option<i64>,
    /// Everything that is in the log
    #[arg(long, conflicts_with_all = ["topic", "key", "since", "until", "from_id", "to_id"])]
    all: bool,
    /// Why; it is kept with what they had come to
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// So many a second, not all at once
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// With more than so many nothing happens
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(i32).range(1..=10_000_000))]
    most: i32,
    /// Only count them
    #[arg(long)]
    dry_run: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Replay {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let Self { handler, topic, key, since, until, from_id, to_id, all, reason, rate, most, dry_run, json } = self;
        let filtered = topic.is_some() || key.is_some() || since.is_some() || until.is_some();
        if !filtered && from_id.is_none() && to_id.is_none() && !all {
            let rule = "replay needs --topic, --key, --since, --until, --from-id or --to-id; --all means the whole log";
            return Err(Failure::with_code(2, rule));
        }
        let topic = topic.map(|topic| topic.to_string());
        let which = Which { handler, topic, key, since, until, from_id, to_id, reason };
        let store = global.store().await?;
        super::registered(&store.handler_names().await?, &which.handler)?;
        let fit = store.replay(&which, rate, most, true).await?;
        if dry_run && json {
            return print_json(&json!({ "fit": fit, "replayed": 0 }));
        }
        if !json {
            print(&format!("{}{fit} fit\n", if fit == i64::from(most) { "at least " } else { "" }))?;
        }
        if dry_run {
            return Ok(());
        }
        let replayed = store.replay(&which, rate, most, false).await?;
        match (replayed, rate) {
            (0, _) => Err(Failure::new("no event fits that has ended for this handler, or is older than it")),
            _ if json => print_json(&json!({ "fit": fit, "replayed": replayed })),
            (count, None) => print(&format!("{count} are handed over again now\n")),
            (count, Some(rate)) => print(&format!("{count} are handed over again, {rate} a second\n")),
        }
    }
}
