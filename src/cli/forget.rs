//! `outboxd forget NAME`

use clap::Args;
use serde_json::json;

use super::output::{print, print_json};
use super::{Failure, Global};

#[derive(Debug, Args)]
pub(super) struct Forget {
    /// The handler's name. Its open deliveries are given up; what it finished stays in outbox.done
    handler: String,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Forget {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let store = global.store().await?;
        let name = &self.handler;
        let Some(given_up) = store.forget(name).await? else {
            let known = store.handler_names().await?;
            super::registered(&known, name)?;
            return Err(Failure::new(format!(
                "handler {name} is in the configuration of the daemon; remove it there first"
            )));
        };
        if self.json {
            return print_json(&json!({ "forgotten": name, "given_up": given_up }));
        }
        print(&match given_up {
            1 => format!("forgot handler {name}; 1 open delivery was given up\n"),
            _ => format!("forgot handler {name}; {given_up} open deliveries were given up\n"),
        })
    }
}
