//! What a SQL handler does inside its own transaction: call the function, and finish the delivery with it.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Transaction;

use super::{Error, RawJson, execute_on, failed, sql};
use crate::event::Attempt;

/// Calls a SQL handler's function with the event, that of a step with the results of those before it, too. `function` is the quoted
/// name. Returns the JSON it returned, unread.
///
/// The one statement that cannot be a file as it stands: a function's name is no parameter, and neither are its arguments.
pub async fn call(transaction: &Transaction<'_>, function: &str, attempt: &Attempt) -> Result<Option<String>, Error> {
    const TEMPLATE: &str = include_str!("../../sql/call_sql_handler.sql");
    let (event, handler) = (attempt.event.id.0, &*attempt.handler);
    let results = attempt.results.as_ref().map(ToString::to_string);
    let text = TEMPLATE.replace("handler_function", function);
    let row = match &results {
        None => transaction.query_one(&text.replace("/* results */", ""), &[&event, &handler]).await,
        Some(results) => {
            let text = text.replace("/* results */", ", $3::text::jsonb");
            transaction.query_one(&text, &[&event, &handler, results]).await
        }
    };
    let row = row.map_err(failed("call_sql_handler"))?;
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
    let ran = i64::try_from(ran.as_micros()).unwrap_or(i64::MAX);
    let params: super::Params<'_> = &[&event, &handler, &number, &ran, &result, &attempt.has_row];
    let done = execute_on(transaction, sql!("finish_in_handler"), params).await?;
    Ok(done == 1)
}
