//! Heartbeats: what running attempts say, on the way to their rows, and whether they were heard of in the database.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::event::{EventId, Heartbeat};
use crate::observe::{Observation, Observer};
use crate::store::settle::Heartbeats;
use crate::store::{Error, Store};

/// What the runner tells of an attempt while it runs.
#[derive(Debug)]
pub enum News<T> {
    /// It said something.
    Said(T, Heartbeat),
    /// Its time is over, and it has said nothing here. The answer is how long ago it was heard of in the database; none
    /// at all means never.
    Silent(T, oneshot::Sender<Duration>),
}

/// An attempt that has a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recorded {
    pub event: EventId,
    pub handler: Arc<str>,
    pub attempt: u32,
}

/// Heartbeats to write, and questions to ask.
#[derive(Debug, Default)]
pub struct Beats {
    /// The newest of each.
    pub said: HashMap<Recorded, Heartbeat>,
    pub silent: Vec<(Recorded, oneshot::Sender<Duration>)>,
}

impl Beats {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.said.is_empty() && self.silent.is_empty()
    }

    /// Adds what came later.
    pub fn extend(&mut self, more: Self) {
        self.said.extend(more.said);
        self.silent.extend(more.silent);
    }

    /// Writes what was said, with one statement. It names the attempts, so it does not matter what was written meanwhile.
    pub async fn keep(&mut self, store: &Store, observer: &Observer) -> Result<(), Error> {
        if !self.said.is_empty() {
            let mut rows = Heartbeats::default();
            let now = Instant::now();
            for (of, heartbeat) in self.said.drain() {
                rows.push(of.event, of.handler, of.attempt);
                rows.said.push(micros(now.saturating_duration_since(heartbeat.at)));
                rows.progress.push(heartbeat.progress);
            }
            match store.heartbeat(&rows).await {
                // Progress is a courtesy: that it could not be kept must not end what runs.
                Err(error) if error.is_refusal() => {
                    observer.tell(&Observation::Hiccup { doing: "keeping progress", error: error.to_string() });
                }
                other => {
                    other?;
                }
            }
        }
        Ok(())
    }

    /// The attempts that are asked about.
    #[must_use]
    pub fn asked(&self) -> Heartbeats {
        let mut rows = Heartbeats::default();
        for (of, _) in &self.silent {
            rows.push(of.event, Arc::clone(&of.handler), of.attempt);
        }
        rows
    }

    /// Tells how long ago each of them was heard of, if it was.
    pub fn answer(self, mut ages: HashMap<(EventId, String), Duration>) {
        for (of, answer) in self.silent {
            if let Some(age) = ages.remove(&(of.event, of.handler.to_string())) {
                // An attempt that has ended meanwhile needs no answer.
                let _ = answer.send(age);
            }
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
