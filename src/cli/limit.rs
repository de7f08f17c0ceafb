//! `outboxd limit HANDLER`: other limits than the configured ones, at once.

use clap::Args;
use serde_json::json;

use super::output::{print, print_json};
use super::{Failure, Global};
use crate::config::RateLimit;

#[derive(Debug, Args)]
pub(super) struct Limit {
    /// The handler's name
    handler: String,
    /// Attempts that run at the same time, 1 to 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=1000))]
    concurrency: Option<i32>,
    /// Attempts that begin in a second, a minute or an hour, as in 50/s, 10/m or 1000/h
    #[arg(long, value_name = "RATE")]
    rate: Option<RateLimit>,
    /// What is configured counts again
    #[arg(long, conflicts_with_all = ["concurrency", "rate"])]
    reset: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Limit {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let Self { handler, concurrency, rate, reset, json } = self;
        if concurrency.is_none() && rate.is_none() && !reset {
            return Err(Failure::with_code(
                2,
                "limit needs --concurrency or --rate; --reset lets what is configured count",
            ));
        }
        let store = global.store().await?;
        super::registered(&store.handler_names().await?, &handler)?;
        store.set_limits(&handler, concurrency, rate).await?;
        let rate = rate.map(|rate| rate.to_string());
        if json {
            return print_json(&json!({ "handler": handler, "concurrency": concurrency, "rate": rate }));
        }
        let concurrency = concurrency.map(|count| format!("{count} at the same time"));
        let limits: Vec<String> = concurrency.into_iter().chain(rate).collect();
        print(&match limits.as_slice() {
            [] => format!("{handler} has the limits of its configuration\n"),
            limits => format!("{handler} is limited to {}\n", limits.join(", ")),
        })
    }
}
