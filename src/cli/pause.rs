//! `outboxd pause HANDLER` and `outboxd resume HANDLER`

use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::output::{print, print_json};
use super::{Failure, Global};
use crate::config::duration;

#[derive(Debug, Args)]
pub(super) struct Pause {
    /// The handler's name
    handler: String,
    /// Why; `outboxd status` tells it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// It ends then by itself: RFC 3339
    #[arg(long, value_name = "TIME", conflicts_with = "for", value_parser = moment)]
    until: Option<Timestamp>,
    /// It ends by itself after so long, as in "2h"
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    r#for: Option<Duration>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Pause {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let until = match self.r#for {
            Some(after) => Some(ahead(after).ok_or_else(|| Failure::with_code(2, "so far ahead there is no time"))?),
            None => self.until,
        };
        if until.is_some_and(|until| until <= Timestamp::now()) {
            return Err(Failure::with_code(2, "the end of the pause must lie ahead"));
        }
        let (store, name) = (global.store().await?, &self.handler);
        if !store.pause(name, self.reason.as_deref(), until).await? {
            return Err(Failure::no_handler(name, &store.handler_names().await?));
        }
        if self.json {
            return print_json(&json!({ "paused": name, "until": until, "reason": self.reason }));
        }
        print(&match until {
            Some(until) => format!("handler {name} is paused until {until:.0}; what runs goes on\n"),
            None => format!("handler {name} is paused until `outboxd resume {name}`; what runs goes on\n"),
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    /// The handler's name
    handler: String,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Resume {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let (store, name) = (global.store().await?, &self.handler);
        if !store.resume(name).await? {
            super::registered(&store.handler_names().await?, name)?;
            return Err(Failure::new(format!("handler {name} is not paused")));
        }
        if self.json { print_json(&json!({ "resumed": name })) } else { print(&format!("handler {name} goes on\n")) }
    }
}

fn ahead(after: Duration) -> Option<Timestamp> {
    // PostgreSQL's last year is later than ours.
    Timestamp::now().checked_add(SignedDuration::try_from(after).ok()?).ok()
}

fn moment(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "write a time as in 2030-01-31T08:00:00Z".to_owned())
}
