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
                    "role": leader.role,
                    "may_lead": leader.may_lead,
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
        Some(Leader { pid, role, may_lead: false, .. }) => {
            format!(
                "no daemon leads: session {pid} holds its lock, whose role {role} is no daemon's: see outboxd doctor"
            )
        }
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
    // Few handlers have callbacks or an order.
    let some_wait = backlog.iter().any(|line| line.waiting > 0);
    let some_blocked = backlog.iter().any(|line| line.blocked > 0);
    let columns = |line: Option<&Backlog>| {
        let column = |header: &str, value: &dyn Fn(&Backlog) -> String| line.map_or_else(|| header.to_owned(), value);
        let mut columns = vec![
            column("HANDLER", &|line| line.handler.clone() + if line.absent { " (absent)" } else { "" }),
            column("KIND", &|line| line.kind.clone()),
            column("PENDING", &|line| line.pending.to_string()),
            column("RUNNING", &|line| line.running.to_string()),
            column("RETRYING", &|line| line.retrying.to_string()),
            column("SCHEDULED", &|line| line.scheduled.to_string()),
        ];
        if some_wait {
            columns.push(column("WAITING", &|line| line.waiting.to_string()));
        }
        if some_blocked {
            columns.push(column("BLOCKED", &|line| line.blocked.to_string()));
        }
        columns.extend([
            column("DEAD", &|line| line.dead.to_string()),
            column("OLDEST", &|line| or_dash(line.oldest_age.map(age))),
            column("PER SECOND", &|line| or_dash(line.finished_per_second.map(|rate| format!("{rate:.1}")))),
            column("FINISHED", &|line| or_dash(line.finished)),
        ]);
        columns
    };
    let held: Vec<String> =
        backlog.iter().flat_map(|line| [paused(line), broken(line), limited(line)]).flatten().collect();
    let held = if held.is_empty() { String::new() } else { format!("\n{}\n", held.join("\n")) };
    table(columns(None), backlog.iter().map(|line| columns(Some(line)))) + &held
}

/// Since when a handler is paused, by whom, until when and why.
fn paused(line: &Backlog) -> Option<String> {
    let since = line.paused_at.filter(|_| line.paused)?;
    let by = line.paused_by.as_deref().map(|by| format!(" by {by}")).unwrap_or_default();
    let until = line.paused_until.map_or_else(|| "it is resumed".to_owned(), |until| format!("{until:.0}"));
    let reason = line.pause_reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    Some(format!("{} is paused since {since:.0}{by} until {until}{reason}", line.handler))
}

/// Which limits count instead of the configured ones.
fn limited(line: &Backlog) -> Option<String> {
    let since = line.limited_at?;
    let concurrency = line.limit_concurrency.map(|count| format!("{count} at the same time"));
    let limits: Vec<String> = concurrency.into_iter().chain(line.limit_rate.clone()).collect();
    let by = line.limited_by.as_deref().map(|by| format!(" by {by}")).unwrap_or_default();
    Some(format!("{} is limited to {} since {since:.0}{by}", line.handler, limits.join(", ")))
}

/// Since when a handler's target is not called, and why.
fn broken(line: &Backlog) -> Option<String> {
    let since = line.breaker_since.filter(|_| line.breaker == "open")?;
    let error = line.breaker_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    Some(format!("{} sends nothing but probes since {since:.0}, its breaker is open{error}", line.handler))
}
