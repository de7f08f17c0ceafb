//! What a SQL handler does inside its own transaction: call the function, and finish the delivery with it.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Transaction;

use super::{Error, execute_on, failed, sql};
use crate::event::Attempt;

/// Lets PostgreSQL end every statement of this transaction that takes longer. Sent at once, so that a call may follow
/// without waiting for the answer.
pub async fn limit(transaction: &Transaction<'_>, timeout: Duration) -> Result<(), Error> {
    // SET takes no parameters; 0 would mean no limit.
    let set = format!("SET LOCAL statement_timeout = {}", timeout.as_millis().max(1));
    transaction.batch_execute(&set).await.map_err(failed("limit"))
}

/// Calls a SQL handler's function with the event. `function` is the quoted name.
///
/// The one statement that cannot be a file as it stands: a function's name is no parameter.
pub async fn call(transaction: &Transaction<'_>, function: &str, attempt: &Attempt) -> Result<Option<Value>, Error> {
    const TEMPLATE: &str = include_str!("../../sql/call_sql_handler.sql");
    let text = TEMPLATE.replace("handler_function", function);
    let event = attempt.event.id.0;
    let row = transaction.query_one(&text, &[&event, &&*attempt.handler]).await.map_err(failed("call_sql_handler"))?;
    row.try_get(0).map_err(failed("call_sql_handler"))
}

/// Finishes the delivery. `false`: somebody else has, or took it away; the transaction must be rolled back.
pub async fn finish(
    transaction: &Transaction<'_>,
    attempt: &Attempt,
    ran: Duration,
    result: Option<&Value>,
) -> Result<bool, Error> {
    let (event, number) = (attempt.event.id.0, attempt.number.cast_signed());
    let handler = &*attempt.handler;
    let left = execute_on(transaction, sql!("leave_open"), &[&event, &handler, &number]).await?;
    if attempt.has_row && left == 0 {
        return Ok(false);
    }
    let ran = i64::try_from(ran.as_micros()).unwrap_or(i64::MAX);
    let done = execute_on(transaction, sql!("finish_in_handler"), &[&event, &handler, &number, &ran, &result]).await?;
    Ok(done == 1)
}
