//! `outboxd status`: one screen.

use clap::Args;
use serde_json::json;

use super::output::{age, or_dash, print, print_json, table};
use super::{Failure, Global};
use crate::store::inspect::Backlog;
use crate::store::registry::Leader;

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let store = global.store().await?;
        let leader = store.leader().await?;
        let backlog = store.backlog().await?;
        if self.json {
            let leader = leader.map(|leader| {
                json!({
                    "pid": leader.pid,
                    "address": leader.address,
                    "since": leader.since,
                    "silent_seconds": leader.silent.map(|silent| silent.as_secs_f64()),
                })
            });
            return print_json(&json!({ "leader": leader, "handlers": backlog }));
        }
        print(&format!("{}\n\n{}", headline(leader.as_ref()), handlers(&backlog)))
    }
}

fn headline(leader: Option<&Leader>) -> String {
    match leader {
        None => "no daemon leads: nothing is dispatched until `outboxd run` runs".to_owned(),
        Some(Leader { pid, address, since, .. }) => {
            let since = since.map_or_else(String::new, |since| format!(" since {since:.0}"));
            format!("a daemon leads: session {pid} from {address}{since}")
        }
    }
}

fn handlers(backlog: &[Backlog]) -> String {
    if backlog.is_empty() {
        return "no handler is registered yet\n".to_owned();
    }
    let header =
        ["HANDLER", "KIND", "PENDING", "RUNNING", "RETRYING", "SCHEDULED", "DEAD", "OLDEST", "PER SECOND", "FINISHED"];
    table(
        header,
        backlog.iter().map(|line| {
            [
                line.handler.clone() + if line.absent { " (absent)" } else { "" },
                line.kind.clone(),
                line.pending.to_string(),
                line.running.to_string(),
                line.retrying.to_string(),
                line.scheduled.to_string(),
                line.dead.to_string(),
                or_dash(line.oldest_age.map(age)),
                or_dash(line.finished_per_second.map(|rate| format!("{rate:.1}"))),
                or_dash(line.finished),
            ]
        }),
    )
}
