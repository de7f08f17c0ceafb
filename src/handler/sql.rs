//! SQL functions: the function and the end of the delivery are one transaction, so it happens exactly once.

use std::error::Error as _;
use std::time::{Duration, Instant};

use deadpool_postgres::{Object, Pool};

use super::answer::{self, Answer};
use super::{Handler, OutcomeFuture};
use crate::config::{DeliveryConfig, SqlConfig};
use crate::emit;
use crate::event::Attempt;
use crate::outcome::{Failure, Fault, Outcome, bounded};
use crate::store::{self, Cause, within};

/// Calls `schema.function(outbox.event) returns jsonb`; for a step of a flow `schema.function(outbox.event, jsonb)`, with the results so far.
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

    async fn attempt(&self, attempt: &Attempt) -> Outcome {
        let mut client = match self.pool.get().await {
            Ok(client) => Borrowed(Some(client)),
            Err(error) => return retry(Fault::Unreachable, format!("no database connection: {error}")),
        };
        let outcome = match &mut client.0 {
            Some(client) => self.transact(client, attempt).await,
            None => return retry(Fault::Unreachable, "no database connection".to_owned()),
        };
        client.give_back();
        outcome
    }

    async fn transact(&self, client: &mut Object, attempt: &Attempt) -> Outcome {
        let began = Instant::now();
        let transaction = match client.transaction().await {
            Ok(transaction) => transaction,
            Err(error) => return retry(Fault::Unreachable, format!("no transaction: {}", store::reason(&error))),
        };
        if let Err(error) = within::limit(&transaction, self.call_max).await {
            return retry(Fault::Unreachable, error.to_string());
        }
        // Everything but done rolls back by dropping the transaction.
        let (result, emitted) = match within::call(&transaction, &self.function, attempt).await {
            Ok(result) => match answered(result) {
                Outcome::Done { result, emit } => match emit::check(&emit) {
                    Ok(()) => (result.map(bounded), emit),
                    Err(error) => return retry(Fault::Refused, error),
                },
                other => return other,
            },
            Err(error) => return retry(fault(&error.source), error.source.to_string()),
        };
        match within::finish(&transaction, attempt, began.elapsed(), result.as_ref()).await {
            Ok(true) => {}
            Ok(false) => return Outcome::Lost,
            Err(error) => return retry(fault(&error.source), error.to_string()),
        }
        let told = self
            .on_done
            .as_ref()
            .and_then(|topic| emit::of_done(topic, &attempt.handler, &attempt.event, attempt.number, result.as_ref()));
        let emitted = emitted.into_iter().map(|one| one.caused_by(&attempt.event)).chain(told).collect();
        if let Err(error) = store::emit::emit_within(&transaction, emitted).await {
            return retry(fault(&error.source), error.to_string());
        }
        match transaction.commit().await {
            Ok(()) => Outcome::Committed { result },
            Err(error) => {
                let text = format!("commit failed: {}", store::reason(&error));
                retry(fault(&Cause::Postgres(error)), text)
            }
        }
    }
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
        Box::pin(self.attempt(attempt))
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
