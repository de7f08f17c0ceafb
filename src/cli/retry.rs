//! `outboxd retry ID [HANDLER]`

use clap::Args;
use serde_json::json;

use super::output::{print, print_json};
use super::{Failure, Global};

#[derive(Debug, Args)]
pub(super) struct Retry {
    /// The event's id
    id: i64,
    /// The handler whose delivery runs again, dead or waiting for its time [default: every handler whose delivery is dead]
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
            let none = match self.handler {
                Some(handler) => format!("no dead, retrying or scheduled delivery for handler {handler}"),
                None => "no dead delivery".to_owned(),
            };
            return Err(Failure::new(format!(
                "event {} has {none}; `outboxd show {}` tells where it stands",
                self.id, self.id
            )));
        }
        if self.json {
            return print_json(&json!({ "event": self.id, "retried": retried }));
        }
        print(&format!("event {} runs again now for {}\n", self.id, retried.join(", ")))
    }
}
