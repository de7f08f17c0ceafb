//! One batch of outcomes as rows, in one transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::write::{Ended, Write};
use crate::emit::Emit;
use crate::event::EventId;
use crate::outcome::{Failure, Settlement, TEXT_BYTES_MAX, excerpt, failed_as};
use crate::store::emit::Emitted;
use crate::store::settle::{Attempts, Finished, Opened, Pairs};
use crate::store::{Error, Store};

/// The rows of one batch, by statement.
#[derive(Default)]
struct Batch {
    append: Finished,
    park: Opened,
    finish: Finished,
    reopen: Opened,
    committed: Finished,
    /// Instances of flows that go on with rows.
    stand: (Vec<i64>, Vec<Arc<str>>),
    attempts: Attempts,
    emitted: Emitted,
    /// By deliveries that have a row, whose attempt may have been taken away.
    emitted_if_held: Vec<(EventId, Arc<str>, Emit)>,
}

/// Writes a batch; returns the indexes of those whose row did not name their attempt any more.
pub(super) async fn write(store: &Store, writes: &[Write]) -> Result<Vec<usize>, Error> {
    let now = Instant::now();
    let mut batch = Batch::default();
    // What has ended in any order is appended in the order of the primary key: a fifth less work for its index. All else keeps its
    // order, which is that of the keys.
    let (mut appended, others): (Vec<&Write>, Vec<&Write>) =
        writes.iter().partition(|write| !write.has_row && write.ended.finishes());
    appended.sort_unstable_by(|a, b| (a.event, &a.handler).cmp(&(b.event, &b.handler)));
    for write in appended.into_iter().chain(others) {
        batch.add(write, now);
    }
    // The common case is one statement, and its own transaction.
    if batch.is_append_only() {
        store.append_done(&batch.append).await?;
        return Ok(Vec::new());
    }
    store.begin().await?;
    match batch.execute(store).await {
        Ok(held) => {
            store.commit().await?;
            let lost = |write: &Write| {
                let fenced = write.has_row
                    && matches!(
                        write.ended,
                        Ended::CutOff
                            | Ended::PutBack
                            | Ended::Expired
                            | Ended::Settled(
                                Settlement::Done { .. }
                                    | Settlement::Retry { .. }
                                    | Settlement::Snooze { .. }
                                    | Settlement::Wait { .. }
                                    | Settlement::Pause { .. }
                                    | Settlement::Dead { .. }
                            )
                    );
                fenced && !held.contains(&(write.event, write.handler.to_string()))
            };
            Ok(writes.iter().enumerate().filter(|(_, write)| lost(write)).map(|(index, _)| index).collect())
        }
        Err(error) => {
            if error.is_refusal() {
                store.rollback().await?;
            }
            Err(error)
        }
    }
}

impl Batch {
    fn is_append_only(&self) -> bool {
        self.park.event_ids.is_empty()
            && self.finish.event_ids.is_empty()
            && self.reopen.event_ids.is_empty()
            && self.committed.event_ids.is_empty()
            && self.stand.0.is_empty()
            && self.attempts.event_ids.is_empty()
            && self.emitted.is_empty()
            && !self.append.event_ids.is_empty()
    }

    /// Rows are opened before they are ended: one batch may hold both for one delivery.
    async fn execute(mut self, store: &Store) -> Result<Pairs, Error> {
        let mut held = Pairs::new();
        if !self.append.event_ids.is_empty() {
            store.append_done(&self.append).await?;
        }
        if !self.park.event_ids.is_empty() {
            store.park(&self.park).await?;
        }
        if !self.finish.event_ids.is_empty() {
            held.extend(store.finish_open(&self.finish).await?);
        }
        if !self.reopen.event_ids.is_empty() {
            held.extend(store.reopen(&self.reopen).await?);
        }
        if !self.committed.event_ids.is_empty() {
            store.close_committed(&self.committed).await?;
        }
        // Behind the rows of their steps.
        if !self.stand.0.is_empty() {
            store.begin_flows(&self.stand.0, &self.stand.1).await?;
        }
        if !self.attempts.event_ids.is_empty() {
            store.append_attempt(&self.attempts).await?;
        }
        for (event, handler, emit) in std::mem::take(&mut self.emitted_if_held) {
            if held.contains(&(event, handler.to_string())) {
                self.emitted.push(emit);
            }
        }
        store.emit(&self.emitted).await?;
        Ok(held)
    }

    fn add(&mut self, write: &Write, now: Instant) {
        let failed = write.failures + 1;
        match &write.ended {
            Ended::Settled(Settlement::Done { result, emit }) => {
                self.finish(write).push(write, "done", result.clone(), now);
                for one in emit {
                    if write.has_row {
                        self.emitted_if_held.push((write.event, Arc::clone(&write.handler), one.clone()));
                    } else {
                        self.emitted.push(one.clone());
                    }
                }
                if write.has_row && write.attempt > 1 {
                    self.attempt(write, "done", None, now);
                }
            }
            Ended::Settled(Settlement::Committed { .. }) => {
                if write.has_row {
                    self.committed.push(write, "done", None, now);
                }
                if write.attempt > 1 {
                    self.attempt(write, "done", None, now);
                }
            }
            Ended::Settled(Settlement::Lost) => {
                // A row that names this attempt is left over from before somebody else finished the delivery.
                if write.has_row {
                    self.committed.push(write, "done", None, now);
                }
            }
            Ended::Settled(Settlement::Retry { after, failure, spent, .. }) => {
                let failures = if *spent { failed } else { write.failures };
                self.open(write).push(write, "retrying", failures, Some(*after), Some(&failure.error), now);
                self.attempt(write, failed_as(*spent), Some(failure), now);
            }
            Ended::Settled(Settlement::Wait { after, .. }) => {
                self.open(write).push(write, "waiting", write.failures, Some(*after), None, now);
                self.attempt(write, "wait", None, now);
            }
            Ended::Settled(Settlement::Pause { failure }) => {
                self.open(write).push(
                    write,
                    "retrying",
                    write.failures,
                    Some(Duration::ZERO),
                    Some(&failure.error),
                    now,
                );
                self.attempt(write, "paused", Some(failure), now);
            }
            Ended::Settled(Settlement::Snooze { after, .. }) => {
                self.open(write).push(write, "scheduled", write.failures, Some(*after), None, now);
                self.attempt(write, "snooze", None, now);
            }
            Ended::Settled(Settlement::Dead { failure }) => {
                self.open(write).push(write, "dead", failed, None, Some(&failure.error), now);
                self.attempt(write, "dead", Some(failure), now);
            }
            Ended::Expired => self.finish(write).push(write, "expired", None, now),
            Ended::Merged { into } => {
                let result = serde_json::json!({ "merged_into": into.0 });
                self.finish(write).push(write, "done", Some(result), now);
            }
            Ended::Blocked | Ended::PutBack => self.open(write).push(write, "blocked", write.failures, None, None, now),
            Ended::Cancelled => {
                if write.has_row {
                    self.committed.push(write, "cancelled", None, now);
                }
                self.attempt(write, "cancelled", None, now);
            }
            Ended::Scheduled { due_in } => self.open(write).push(write, "scheduled", 0, Some(*due_in), None, now),
            Ended::Stands => {
                self.stand.0.push(write.event.0);
                self.stand.1.push(Arc::clone(&write.handler));
            }
            Ended::StillRunning => {
                self.park.push(write, "running", write.failures, None, None, now);
            }
            Ended::CutOff => {
                let error = format!("the daemon stopped before attempt {} had ended", write.attempt);
                self.open(write).push(write, "retrying", write.failures, Some(Duration::ZERO), Some(&error), now);
            }
        }
    }

    /// Where a delivery is finished: from its row, or without one.
    fn finish(&mut self, write: &Write) -> &mut Finished {
        if write.has_row { &mut self.finish } else { &mut self.append }
    }

    /// Where a delivery gets its next state: in its row, or in a new one.
    fn open(&mut self, write: &Write) -> &mut Opened {
        if write.has_row { &mut self.reopen } else { &mut self.park }
    }

    fn attempt(&mut self, write: &Write, outcome: &'static str, failure: Option<&Failure>, now: Instant) {
        let rows = &mut self.attempts;
        rows.event_ids.push(write.event.0);
        rows.handlers.push(Arc::clone(&write.handler));
        rows.attempts.push(write.attempt.cast_signed());
        rows.began.push(micros(write.began.unwrap_or(write.at), now));
        rows.ended.push(micros(write.at, now));
        rows.outcomes.push(outcome);
        rows.errors.push(failure.map(|failure| bounded(&failure.error)));
        rows.responses.push(failure.and_then(|failure| failure.response.as_deref().map(bounded)));
    }
}

impl Finished {
    fn push(&mut self, write: &Write, outcome: &'static str, result: Option<serde_json::Value>, now: Instant) {
        self.event_ids.push(write.event.0);
        self.handlers.push(Arc::clone(&write.handler));
        self.outcomes.push(outcome);
        self.attempts.push(write.attempt.cast_signed());
        self.began.push(write.began.map(|began| micros(began, now)));
        self.ended.push(micros(write.at, now));
        self.results.push(result);
    }
}

impl Opened {
    fn push(
        &mut self,
        write: &Write,
        state: &'static str,
        failures: u32,
        due: Option<Duration>,
        error: Option<&str>,
        now: Instant,
    ) {
        self.event_ids.push(write.event.0);
        self.handlers.push(Arc::clone(&write.handler));
        self.states.push(state);
        self.attempts.push(write.attempt.cast_signed());
        self.failures.push(failures.cast_signed());
        let micros_of = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        self.due.push(due.map(micros_of));
        self.polls.push(write.asked.polls.cast_signed());
        self.answers.push(write.asked.left.map(micros_of));
        self.began.push((state == "running").then(|| micros(write.began.unwrap_or(write.at), now)));
        self.errors.push(error.map(bounded));
        self.results.push(write.results.as_ref().map(ToString::to_string));
    }
}

fn micros(since: Instant, now: Instant) -> i64 {
    i64::try_from(now.saturating_duration_since(since).as_micros()).unwrap_or(i64::MAX)
}

/// A text from a handler's own `Failure` need not have gone through [`Failure::new`].
fn bounded(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX && !text.contains('\0') { text.to_owned() } else { excerpt(text) }
}
