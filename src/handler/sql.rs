//! SQL functions: the function and the end of the delivery are one transaction, so it happens exactly once.

use std::time::{Duration, Instant};

use deadpool_postgres::Pool;
use futures_util::future;
use serde_json::Value;
use tokio_postgres::error::SqlState;

use super::answer::{self, Answer};
use super::{Handler, OutcomeFuture};
use crate::config::{SqlConfig, duration};
use crate::event::Attempt;
use crate::outcome::{Failure, Outcome, RESULT_BYTES_MAX};
use crate::store::{self, within};

/// Calls `schema.function(outbox.event) returns jsonb`.
pub struct SqlHandler {
    /// Quoted, as it stands in the statement.
    function: String,
    timeout: Duration,
    pool: Pool,
}

impl SqlHandler {
    /// PostgreSQL itself ends a function after `timeout`: whoever stops waiting for it does not end it, and it would
    /// keep its connection from the attempts to come.
    #[must_use]
    pub fn new(config: &SqlConfig, timeout: Duration, pool: Pool) -> Self {
        Self { function: quoted(config), timeout, pool }
    }

    async fn attempt(&self, attempt: &Attempt) -> Outcome {
        let mut client = match self.pool.get().await {
            Ok(client) => client,
            Err(error) => return retry(format!("no database connection: {error}")),
        };
        let began = Instant::now();
        let transaction = match client.transaction().await {
            Ok(transaction) => transaction,
            Err(error) => return retry(format!("no transaction: {}", store::reason(&error))),
        };
        // Everything but done rolls back by dropping the transaction.
        let (limited, result) = future::join(
            within::limit(&transaction, self.timeout),
            within::call(&transaction, &self.function, attempt),
        )
        .await;
        let result = match limited.and(result) {
            Ok(result) => match answered(result) {
                Outcome::Done { result } => result,
                other => return other,
            },
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) && began.elapsed() >= self.timeout => {
                return retry(format!("timed out after {}", duration::format(self.timeout)));
            }
            Err(error) => return retry(error.source.to_string()),
        };
        match within::finish(&transaction, attempt, began.elapsed(), result.as_ref()).await {
            Ok(true) => {}
            Ok(false) => return Outcome::Lost,
            Err(error) => return retry(error.to_string()),
        }
        match transaction.commit().await {
            Ok(()) => Outcome::Committed,
            Err(error) => retry(format!("commit failed: {}", store::reason(&error))),
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
fn answered(returned: Option<Value>) -> Outcome {
    let Some(value) = returned else { return Outcome::Done { result: None } };
    let text = value.to_string();
    match answer::parse(text.as_bytes()) {
        Answer::Given(outcome) => outcome,
        Answer::Absent { .. } if text.len() > RESULT_BYTES_MAX => Outcome::Done {
            result: Some(
                serde_json::json!({ "outboxd": format!("the result had {} bytes; at most {RESULT_BYTES_MAX} are kept", text.len()) }),
            ),
        },
        Answer::Absent { .. } => Outcome::Done { result: Some(value) },
    }
}

fn retry(error: String) -> Outcome {
    Outcome::Retry { after: None, failure: Failure::new(error) }
}
