//! `outboxd migrate`: the schema.

use clap::Args;

use super::output::{print, print_json};
use super::{Failure, Global};
use crate::postgres::migrate;
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// Print the SQL instead of running it
    #[arg(long)]
    sql: bool,
    /// Make the roles outbox_producer, outbox_reader, outbox_operator and outbox_daemon, too, and give them their rights in this
    /// database. Roles belong to the whole cluster; making them takes CREATEROLE
    #[arg(long, conflicts_with = "sql")]
    roles: bool,
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
        if self.roles {
            Store::new(target.connect("migrate").await?).add_roles().await?;
        }
        if self.json {
            return print_json(&serde_json::json!({ "applied": applied, "roles": self.roles }));
        }
        let roles = if self.roles { "; the four roles have their rights" } else { "" };
        match applied.as_slice() {
            [] => print(&format!("the schema is up to date{roles}\n")),
            applied => print(&format!("applied {}{roles}\n", applied.join(", "))),
        }
    }
}
