//! `outboxd redrive`: dead deliveries run again, their failures forgotten.

use clap::Args;
use serde_json::json;

use super::dead::{Filter, none_fits, previewed};
use super::output::{print, print_json};
use super::{Failure, Global};

#[derive(Debug, Args)]
pub(super) struct Redrive {
    #[command(flatten)]
    filter: Filter,
    /// So many a second, not all at once
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// Only count them
    #[arg(long)]
    dry_run: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Redrive {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let which = self.filter.meant("redrive")?;
        let store = global.store().await?;
        if let Some(handler) = &which.handler {
            super::registered(&store.handler_names().await?, handler)?;
        }
        let fit = store.redrive(&which, self.rate, true).await?;
        if previewed(fit, "redriven", self.dry_run, self.json)? {
            return Ok(());
        }
        let redriven = store.redrive(&which, self.rate, false).await?;
        match redriven {
            0 => Err(none_fits()),
            _ if self.json => print_json(&json!({ "fit": fit, "redriven": redriven })),
            1 => print("1 runs again now\n"),
            count => print(&match self.rate {
                Some(rate) => format!("{count} run again, {rate} a second\n"),
                None => format!("{count} run again now\n"),
            }),
        }
    }
}

pub(super) fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "write a number as in 50 or 0.5".to_owned())?;
    if rate > 0.0 && rate <= 1e6 { Ok(rate) } else { Err("it must be above 0 and at most 1000000".to_owned()) }
}
