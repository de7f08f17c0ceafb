//! `outboxd cancel ID [HANDLER]`

use clap::Args;
use serde_json::json;

use super::output::{print, print_json};
use super::{Failure, Global};
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// The event's id
    id: i64,
    /// The handler whose delivery is cancelled [default: every handler that has not finished it]
    handler: Option<String>,
    /// Why; `outboxd show` tells it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Cancel {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let store = global.store().await?;
        let handlers = match &self.handler {
            Some(handler) => vec![handler.clone()],
            None => store.cancellable(self.id).await?,
        };
        let mut cancelled = Vec::new();
        for handler in handlers {
            if store.cancel(self.id, &handler, self.reason.as_deref()).await? {
                cancelled.push(handler);
            }
        }
        if cancelled.is_empty() {
            return Err(self.nothing(&store).await?);
        }
        if self.json {
            return print_json(&json!({ "event": self.id, "cancelled": cancelled }));
        }
        print(&format!(
            "event {} is cancelled for {}; an attempt that runs is ended, and what a flow has done is undone\n",
            self.id,
            cancelled.join(", ")
        ))
    }

    /// Why there was nothing to cancel.
    async fn nothing(&self, store: &Store) -> Result<Failure, Failure> {
        let id = self.id;
        let Some(story) = store.story(id).await? else { return Ok(Failure::no_event(id)) };
        let Some(handler) = &self.handler else {
            return Ok(Failure::new(format!(
                "event {id} has no delivery that could be cancelled; `outboxd show {id}` tells where they stand"
            )));
        };
        Ok(Failure::new(match story.deliveries.iter().find(|delivery| delivery.handler == *handler) {
            None => format!("handler {handler} has no delivery of event {id}"),
            Some(delivery) if delivery.state == "dead" => format!(
                "event {id} is dead for {handler}; `outboxd discard {id} {handler} --reason TEXT` gives it up for good"
            ),
            Some(delivery) => format!("event {id} is {} for {handler} already", delivery.state),
        }))
    }
}
