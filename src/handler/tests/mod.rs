//! What the handlers promise, kept against real servers and real processes.

mod answer;
mod batch;
mod command;
mod guard;
mod http;
mod url;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::Handler;
use crate::event::{Attempt, Event, EventId, Heartbeats};
use crate::outcome::{Failure, Outcome};

/// Long enough for a loaded machine; no test waits for it unless a promise is broken.
const PATIENCE: Duration = Duration::from_mins(1);

fn event() -> Event {
    Event {
        id: EventId(42),
        topic: "user.registered".to_owned(),
        key: Some("ada".to_owned()),
        payload: r#"{"name": "Ada"}"#.to_owned(),
        headers: "{}".to_owned(),
        created_at: "2026-03-01T12:30:00.123456Z".parse().unwrap(),
    }
}

fn attempt(event: Event) -> Attempt {
    Attempt {
        event: Arc::new(event),
        handler: "welcome_email".into(),
        number: 3,
        has_row: false,
        installation: "0b0c6a3e-2f0b-4a7e-9c55-0d9f3f5f1a11".parse().unwrap(),
        callback: None,
        results: None,
        trace: None,
        heartbeats: Heartbeats::default(),
    }
}

/// Runs the handler to its end.
async fn run(handler: &impl Handler, event: Event) -> Outcome {
    within_patience("the attempt ends", handler.run(&attempt(event))).await
}

async fn within_patience<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("this never came true: {what}"))
}

/// Waits until something is true that announces itself to nobody.
async fn until(what: &str, fact: impl Fn() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    within_patience(what, async {
        while !fact() {
            ticks.tick().await;
        }
    })
    .await;
}

fn retried(outcome: Outcome) -> (Option<Duration>, Failure) {
    match outcome {
        Outcome::Retry { after, failure } => (after, failure),
        other => panic!("not a retry: {other:?}"),
    }
}

fn dead(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Dead { failure } => failure,
        other => panic!("not dead: {other:?}"),
    }
}
