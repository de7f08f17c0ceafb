//! What a SQL handler does inside its own transaction: call the function, and finish the delivery with it.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Transaction;

use super::{Error, RawJson, execute_on, failed, sql};
use crate::event::Attempt;

/// Calls a SQL handler's function with the event. `function` is the quoted name. Returns the JSON it returned, unread.
///
/// The one statement that cannot be a file as it stands: a function's name is no parameter.
pub async fn call(transaction: &Transaction<'_>, function: &str, attempt: &Attempt) -> Result<Option<String>, Error> {
    const TEMPLATE: &str = include_str!("../../sql/call_sql_handler.sql");
    let text = TEMPLATE.replace("handler_function", function);
    let event = attempt.event.id.0;
    let row = transaction.query_one(&text, &[&event, &&*attempt.handler]).await.map_err(failed("call_sql_handler"))?;
    let returned: Option<RawJson> = row.try_get(0).map_err(failed("call_sql_handler"))?;
    Ok(returned.map(|json| json.0))
}

/// Lets PostgreSQL end every further statement of the transaction that takes longer than this.
pub async fn limit(transaction: &Transaction<'_>, longest: Duration) -> Result<(), Error> {
    let milliseconds = longest.as_millis().min(i32::MAX.unsigned_abs().into()).to_string();
    execute_on(transaction, sql!("limit_statements"), &[&milliseconds]).await.map(drop)
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
