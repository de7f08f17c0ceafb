//! `outboxd events`: the newest events and where their deliveries stand.

use clap::Args;
use serde_json::Value;

use super::output::{or_dash, print, print_json, table};
use super::{Failure, Global};
use crate::store::inspect::Filter;
use crate::topic::Pattern;

/// The states a delivery can be in, as `--state` takes them.
const STATES: [&str; 11] = [
    "pending",
    "scheduled",
    "retrying",
    "running",
    "waiting",
    "blocked",
    "dead",
    "done",
    "expired",
    "cancelled",
    "discarded",
];

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Only events of these topics: a pattern, `*` is one word, `#` any number of words
    #[arg(long, value_name = "PATTERN")]
    topic: Option<Pattern>,
    /// Only events with this key
    #[arg(long)]
    key: Option<String>,
    /// Only events with a delivery in this state
    #[arg(long, value_parser = STATES)]
    state: Option<String>,
    /// Only events below this id: the last one of a list gives the next page
    #[arg(long, value_name = "ID")]
    below: Option<i64>,
    /// Events at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Events {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let store = global.store().await?;
        let topic = self.topic.as_ref().map(Pattern::to_string);
        let filter = Filter { below: self.below, topic, key: self.key, state: self.state, limit: self.limit };
        let events = store.events(&filter).await?;
        if self.json {
            return print_json(&events);
        }
        if events.is_empty() {
            return print("no event fits\n");
        }
        print(&table(
            ["ID", "TOPIC", "KEY", "CREATED", "DELIVERIES"],
            events.iter().map(|event| {
                let created = format!("{:.3}", event.created_at);
                [
                    event.id.to_string(),
                    event.topic.clone(),
                    or_dash(event.key.as_ref()),
                    created,
                    states(&event.deliveries),
                ]
            }),
        ))
    }
}

fn states(deliveries: &Value) -> String {
    let Some(states) = deliveries.as_object().filter(|states| !states.is_empty()) else {
        return "no handler wants it".to_owned();
    };
    let state = |(handler, state): (&String, &Value)| format!("{handler} {}", state.as_str().unwrap_or("?"));
    states.iter().map(state).collect::<Vec<_>>().join(", ")
}
