//! `outboxd migrate`: the schema.

use clap::Args;

use super::output::{print, print_json};
use super::{Failure, Global};
use crate::postgres::migrate;

#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// Print the SQL instead of running it
    #[arg(long)]
    sql: bool,
    /// Print what was done as JSON
    #[arg(long, conflicts_with = "sql")]
    json: bool,
}

impl Migrate {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        if self.sql {
            return print(&migrate::sql());
        }
        let target = global.target()?;
        let applied = migrate::migrate(&target).await?;
        if self.json {
            return print_json(&serde_json::json!({ "applied": applied }));
        }
        match applied.as_slice() {
            [] => print("the schema is up to date\n"),
            applied => print(&format!("applied {}\n", applied.join(", "))),
        }
    }
}
