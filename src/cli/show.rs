//! `outboxd show ID`: the whole story of one event.

use std::fmt::Write as _;

use clap::Args;

use super::output::{print, print_json};
use super::{Failure, Global};
use crate::emit::{CAUSATION, CORRELATION};
use crate::store::inspect::{DeliveryStory, Operation, Story};

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The event's id
    id: i64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let store = global.store().await?;
        let Some(mut story) = store.story(self.id).await? else {
            return Err(Failure::no_event(self.id));
        };
        // Without a file, or without its secrets, nobody knows whether spans are exported.
        if story.trace_id.is_none() && global.load().is_ok_and(|config| config.traces.is_some()) {
            story.trace_id = Some(story.own_trace_id.clone());
        }
        if self.json { print_json(&story) } else { print(&told(&story)) }
    }
}

fn told(story: &Story) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "event {}  {}", story.id, story.topic);
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "  {name:<11}{value}");
        }
    };
    line("key", story.key.clone());
    line("created", Some(format!("{:.3}", story.created_at)));
    line("due", story.due_at.map(|at| format!("{at:.3}")));
    line("expires", story.expires_at.map(|at| format!("{at:.3}")));
    line("dedup key", story.dedup_key.clone());
    line("priority", (story.priority != 0).then(|| story.priority.to_string()));
    line("headers", Some(story.headers.to_string()).filter(|headers| headers != "{}"));
    line("payload", Some(cut(story.payload.get())));
    line("trace", story.trace_id.clone());
    line("came of", came_of(story));
    let emitted: Vec<String> = story.emitted.iter().map(|event| format!("{} {}", event.id, event.topic)).collect();
    line("emitted", (!emitted.is_empty()).then(|| cut(&emitted.join(", "))));
    if story.deliveries.is_empty() {
        text.push_str("\nno handler wants it\n");
    }
    for delivery in &story.deliveries {
        text.push('\n');
        text.push_str(&delivery_told(delivery));
    }
    for operation in &story.operations {
        text.push_str(&done_by_hand(operation));
    }
    text
}

fn done_by_hand(operation: &Operation) -> String {
    let Operation { handler, at, role, action, detail } = operation;
    let handler = handler.as_ref().map(|handler| format!(" {handler}")).unwrap_or_default();
    let said: Vec<String> =
        detail.as_object().into_iter().flatten().map(|(name, value)| format!("{name} {value}")).collect();
    format!(
        "\n{at:.3}  {action}{handler} by {role}{}{}\n",
        if said.is_empty() { "" } else { ": " },
        cut(&said.join(", "))
    )
}

/// The event whose delivery emitted this one, and the first of all if that is another.
fn came_of(story: &Story) -> Option<String> {
    let header = |name| story.headers.get(name).and_then(serde_json::Value::as_str);
    let cause = header(CAUSATION)?;
    Some(match header(CORRELATION) {
        Some(first) if first != cause => format!("{cause}, and first of {first}"),
        _ => cause.to_owned(),
    })
}

fn delivery_told(delivery: &DeliveryStory) -> String {
    let mut text = format!("{}  {}", delivery.handler, delivery.state);
    if delivery.attempts > 0 {
        let _ = write!(text, " after {} attempt{}", delivery.attempts, if delivery.attempts == 1 { "" } else { "s" });
    }
    text.push('\n');
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "  {name:<11}{value}");
        }
    };
    line("due", delivery.due_at.map(|at| format!("{at:.3}")));
    line("started", delivery.started_at.map(|at| format!("{at:.3}")));
    line("finished", delivery.finished_at.map(|at| format!("{at:.3}")));
    line("progress", delivery.progress.as_ref().map(|progress| cut(&progress.to_string())));
    line("heartbeat", delivery.heartbeat_at.map(|at| format!("{at:.3}")));
    if matches!(delivery.state.as_str(), "cancelled" | "discarded") {
        // Written by the verb: who did it, and why.
        let said = |key| delivery.result.as_ref()?.get(key)?.as_str().map(ToOwned::to_owned);
        line("by", said("by"));
        line("reason", said("reason"));
        line("error", said("error"));
    } else {
        line("result", delivery.result.as_ref().map(|result| cut(&result.to_string())));
        line("error", delivery.last_error.clone());
    }
    for attempt in &delivery.history {
        let ran = attempt.finished_at.duration_since(attempt.started_at).as_secs_f64();
        let error = attempt.error.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "  attempt {:<3}{:.3}  {} after {ran:.3} s  {error}",
            attempt.attempt, attempt.started_at, attempt.outcome
        );
        if let Some(response) = &attempt.response {
            let _ = writeln!(text, "             answered: {}", cut(response));
        }
    }
    text
}

/// The beginning of a long text, on one line; `--json` prints all of it.
fn cut(text: &str) -> String {
    const CHARS_MAX: usize = 300;
    let line = text.replace(['\n', '\r'], " ");
    match line.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes in all, --json prints them)", &line[..end], text.len()),
        None => line,
    }
}
