//! `outboxd retry ID [HANDLER]`

use clap::Args;
use serde_json::json;

use super::output::{print, print_json};
use super::{Failure, Global};
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct Retry {
    /// The event's id
    id: i64,
    /// The handler whose delivery runs again, dead or waiting for its time or an answer [default: every handler whose delivery is dead]
    handler: Option<String>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Retry {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let store = global.store().await?;
        let handlers = match &self.handler {
            Some(handler) => vec![handler.clone()],
            None => store.retryable(self.id).await?,
        };
        let mut retried = Vec::new();
        for handler in handlers {
            if store.retry(self.id, &handler).await? {
                retried.push(handler);
            }
        }
        if retried.is_empty() {
            return Err(self.nothing(&store).await?);
        }
        if self.json {
            return print_json(&json!({ "event": self.id, "retried": retried }));
        }
        print(&format!("event {} runs again now for {}\n", self.id, retried.join(", ")))
    }

    /// Why there was nothing to run again.
    async fn nothing(&self, store: &Store) -> Result<Failure, Failure> {
        let id = self.id;
        if store.story(id).await?.is_none() {
            return Ok(Failure::no_event(id));
        }
        Ok(Failure::new(match &self.handler {
            Some(handler) => format!(
                "handler {handler} has no dead, retrying, scheduled or waiting delivery of event {id}; \
                 `outboxd show {id}` tells where it stands"
            ),
            None => format!(
                "event {id} has no dead delivery; `outboxd retry {id} HANDLER` runs a retrying, scheduled or waiting one now"
            ),
        }))
    }
}
