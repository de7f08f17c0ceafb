//! SQL functions: the function and the end of the delivery, or of all of a batch, are one transaction, so it happens exactly once.

use std::collections::HashSet;
use std::error::Error as _;
use std::time::{Duration, Instant};

use deadpool_postgres::{Object, Pool};
use tokio_postgres::Transaction;

use super::answer::{self, Answer};
use super::{Handler, OutcomeFuture, OutcomesFuture, batch};
use crate::config::{DeliveryConfig, SqlConfig};
use crate::emit::{self, Emit};
use crate::event::{Attempt, EventId};
use crate::outcome::{Failure, Fault, Outcome, bounded};
use crate::store::{self, Cause, within};

/// Calls `schema.function(outbox.event) returns jsonb`; for a step of a flow `schema.function(outbox.event, jsonb)`, with the results
/// so far; with a batch `schema.function(outbox.event[])`.
pub struct SqlHandler {
    /// Quoted, as it stands in the statement.
    function: String,
    pool: Pool,
    /// PostgreSQL itself ends a call that lasts longer. The runner has given the attempt up by then, and without this
    /// the call would go on in the server for as long as it likes.
    call_max: Duration,
    on_done: Option<String>,
}

impl SqlHandler {
    #[must_use]
    pub fn new(config: &SqlConfig, delivery: &DeliveryConfig, pool: Pool) -> Self {
        let call_max = delivery.timeout + Duration::from_secs(1);
        Self { function: quoted(config), pool, call_max, on_done: delivery.on_done.clone() }
    }

    /// The outcome of each. An error is how all of them ended.
    async fn attempts(&self, attempts: &[Attempt], form: Form) -> Result<Vec<Outcome>, Outcome> {
        let client = self.pool.get().await;
        let client = client.map_err(|error| retry(Fault::Unreachable, format!("no database connection: {error}")))?;
        let mut client = Borrowed(Some(client));
        let outcomes = match &mut client.0 {
            Some(client) => self.until_nothing_is_lost(client, attempts, form).await,
            None => return Err(retry(Fault::Unreachable, "no database connection".to_owned())),
        };
        client.give_back();
        outcomes
    }

    /// What one of a batch has lost is rolled back for all, so the others are called again without it. Every round has fewer.
    async fn until_nothing_is_lost(
        &self,
        client: &mut Object,
        attempts: &[Attempt],
        form: Form,
    ) -> Result<Vec<Outcome>, Outcome> {
        let mut lost = HashSet::new();
        loop {
            let left: Vec<Attempt> =
                attempts.iter().filter(|attempt| !lost.contains(&attempt.event.id)).cloned().collect();
            if left.is_empty() {
                return Ok(vec![Outcome::Lost; attempts.len()]);
            }
            match self.transact(client, &left, form).await? {
                Transacted::Lost(more) => lost.extend(more),
                Transacted::Ended(outcomes) => {
                    let mut outcomes = outcomes.into_iter();
                    let of = |attempt: &Attempt| {
                        let ended = if lost.contains(&attempt.event.id) { None } else { outcomes.next() };
                        ended.unwrap_or(Outcome::Lost)
                    };
                    return Ok(attempts.iter().map(of).collect());
                }
            }
        }
    }

    /// Calls the function, and finishes what it has done, in one transaction. Without anything done it is rolled back, as after every
    /// error, by being dropped.
    async fn transact(&self, client: &mut Object, attempts: &[Attempt], form: Form) -> Result<Transacted, Outcome> {
        let began = Instant::now();
        let transaction = client.transaction().await;
        let transaction = transaction
            .map_err(|error| retry(Fault::Unreachable, format!("no transaction: {}", store::reason(&error))))?;
        let limited = within::limit(&transaction, self.call_max).await;
        limited.map_err(|error| retry(Fault::Unreachable, error.to_string()))?;
        let mut outcomes = self.call(&transaction, attempts, form).await?;

        let mut ended = Vec::new();
        for (attempt, outcome) in attempts.iter().zip(&mut outcomes) {
            if let Outcome::Done { result, emit } = outcome {
                emit::check(emit).map_err(|error| retry(Fault::Refused, error))?;
                *result = result.take().map(bounded);
                ended.push((attempt, result.as_ref()));
            }
        }
        if ended.is_empty() {
            return Ok(Transacted::Ended(outcomes));
        }
        let done = within::finish(&transaction, &ended, began.elapsed()).await;
        let done = done.map_err(|error| retry(fault(&error.source), error.to_string()))?;
        if done.len() < ended.len() {
            let missing = ended.iter().map(|(attempt, _)| attempt.event.id).filter(|id| !done.contains(id));
            return Ok(Transacted::Lost(missing.collect()));
        }
        let emitted = attempts.iter().zip(&mut outcomes).flat_map(|(attempt, outcome)| self.emitted(attempt, outcome));
        let emitted = store::emit::emit_within(&transaction, emitted.collect()).await;
        emitted.map_err(|error| retry(fault(&error.source), error.to_string()))?;
        transaction.commit().await.map_err(|error| {
            let text = format!("commit failed: {}", store::reason(&error));
            retry(fault(&Cause::Postgres(error)), text)
        })?;
        let committed = |outcome| match outcome {
            Outcome::Done { result, .. } => Outcome::Committed { result },
            other => other,
        };
        Ok(Transacted::Ended(outcomes.into_iter().map(committed).collect()))
    }

    async fn call(
        &self,
        transaction: &Transaction<'_>,
        attempts: &[Attempt],
        form: Form,
    ) -> Result<Vec<Outcome>, Outcome> {
        let called = match (form, attempts) {
            (Form::One, [attempt]) => within::call(transaction, &self.function, attempt).await,
            _ => within::call_batch(transaction, &self.function, attempts).await,
        };
        let returned = called.map_err(|error| retry(fault(&error.source), error.source.to_string()))?;
        Ok(match form {
            Form::One => vec![answered(returned)],
            Form::Batch => batch::outcomes(returned.unwrap_or_default().as_bytes(), attempts),
        })
    }

    /// What a delivery that is done emits, and the event that tells of it.
    fn emitted(&self, attempt: &Attempt, outcome: &mut Outcome) -> Vec<Emit> {
        let Outcome::Done { result, emit } = outcome else { return Vec::new() };
        let told = self.on_done.as_ref().and_then(|topic| {
            emit::of_done(topic, &attempt.handler, &attempt.event, attempt.number, result.as_ref(), attempt.trace)
        });
        std::mem::take(emit).into_iter().map(|one| one.caused_by(&attempt.event, attempt.trace)).chain(told).collect()
    }
}

/// What the function takes.
#[derive(Clone, Copy)]
enum Form {
    /// An event.
    One,
    /// An array of them.
    Batch,
}

enum Transacted {
    /// An outcome for each.
    Ended(Vec<Outcome>),
    /// Somebody else has finished these, or taken them away: nothing has happened.
    Lost(Vec<EventId>),
}

/// A connection of the pool, closed instead of given back when it is dropped in the middle of an attempt: it may still
/// be busy.
struct Borrowed(Option<Object>);

impl Borrowed {
    fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}

impl Handler for SqlHandler {
    fn run<'a>(&'a self, attempt: &'a Attempt) -> OutcomeFuture<'a> {
        Box::pin(async move {
            let ended = self.attempts(std::slice::from_ref(attempt), Form::One).await;
            ended.map_or_else(|failed| failed, |mut outcomes| outcomes.pop().unwrap_or(Outcome::Lost))
        })
    }

    fn run_batch<'a>(&'a self, attempts: &'a [Attempt]) -> OutcomesFuture<'a> {
        Box::pin(async move {
            self.attempts(attempts, Form::Batch).await.unwrap_or_else(|failed| vec![failed; attempts.len()])
        })
    }
}

/// `"schema"."function"`. The configuration allows letters, digits, `_` and `$` only, so nothing needs escaping.
#[must_use]
pub fn quoted(config: &SqlConfig) -> String {
    format!("\"{}\".\"{}\"", config.schema, config.function)
}

/// What the function returned: an answer like any other handler's, or its result.
fn answered(returned: Option<String>) -> Outcome {
    let Some(json) = returned else { return Outcome::done() };
    match answer::parse(json.as_bytes()) {
        Answer::Given(outcome) => outcome,
        Answer::Absent { .. } => match serde_json::from_str::<serde_json::Value>(&json) {
            Ok(value) => Outcome::done_with(value),
            Err(error) => retry(Fault::Refused, format!("the function returned JSON that cannot be kept: {error}")),
        },
    }
}

/// What an error in the middle of an attempt says: the database answered, or it went away.
fn fault(error: &Cause) -> Fault {
    let Cause::Postgres(error) = error else { return Fault::Refused };
    let went_away = match error.code() {
        Some(code) => ["08", "57P"].iter().any(|class| code.code().starts_with(class)),
        // A result of another type than jsonb has no code either.
        None => error.is_closed() || error.source().is_some_and(<dyn std::error::Error>::is::<std::io::Error>),
    };
    if went_away { Fault::Failing } else { Fault::Refused }
}

fn retry(fault: Fault, error: String) -> Outcome {
    Outcome::Retry { after: None, failure: Failure::new(error).with_fault(fault) }
}
