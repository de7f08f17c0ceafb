//! `outboxd discard`: dead deliveries are given up for good.

use clap::Args;
use serde_json::json;

use super::dead::{Filter, none_fits, previewed};
use super::output::{print, print_json};
use super::{Failure, Global};
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct Discard {
    /// The event's id; without one, every dead delivery that fits
    #[arg(requires = "of", conflicts_with_all = ["filter", "dry_run"])]
    id: Option<i64>,
    /// The handler whose delivery is discarded
    #[arg(value_name = "HANDLER")]
    of: Option<String>,
    /// Why; `outboxd show` tells it
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    reason: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// Only count them
    #[arg(long)]
    dry_run: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Discard {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let reason = self.reason.unwrap_or_default();
        if let (Some(id), Some(handler)) = (self.id, &self.of) {
            let store = global.store().await?;
            if !store.discard(id, handler, &reason).await? {
                return Err(not_dead(&store, id, handler).await?);
            }
            if self.json {
                return print_json(&json!({ "event": id, "discarded": [handler] }));
            }
            return print(&format!("event {id} is discarded for {handler}\n"));
        }
        let which = self.filter.meant("discard")?;
        let store = global.store().await?;
        if let Some(handler) = &which.handler {
            super::registered(&store.handler_names().await?, handler)?;
        }
        let fit = store.discard_dead(&which, &reason, true).await?;
        if previewed(fit, "discarded", self.dry_run, self.json)? {
            return Ok(());
        }
        match store.discard_dead(&which, &reason, false).await? {
            0 => Err(none_fits()),
            count if self.json => print_json(&json!({ "fit": fit, "discarded": count })),
            1 => print("1 is discarded\n"),
            count => print(&format!("{count} are discarded\n")),
        }
    }
}

/// Why there was nothing to discard.
async fn not_dead(store: &Store, id: i64, handler: &str) -> Result<Failure, Failure> {
    let Some(story) = store.story(id).await? else { return Ok(Failure::no_event(id)) };
    Ok(Failure::new(match story.deliveries.iter().find(|delivery| delivery.handler == handler) {
        None => format!("handler {handler} has no delivery of event {id}"),
        Some(delivery) => match delivery.state.as_str() {
            state @ ("done" | "cancelled" | "expired" | "discarded") => {
                format!("event {id} is {state} for {handler} already")
            }
            state => format!("event {id} is {state} for {handler}, not dead; `outboxd cancel {id} {handler}` ends it"),
        },
    }))
}
