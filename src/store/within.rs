//! What a SQL handler does inside its own transaction: call the function, and finish deliveries with it.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Transaction;

use super::{Error, RawJson, execute_on, failed, query_on, sql};
use crate::event::{Attempt, EventId};

/// Calls a SQL handler's function with the event, that of a step with the results of those before it, too. `function` is the quoted
/// name. Returns the JSON it returned, unread.
///
/// Cannot be a file as it stands, like [`call_batch`]: a function's name is no parameter, and neither are its arguments.
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

/// The same with many events, in one array.
pub async fn call_batch(
    transaction: &Transaction<'_>,
    function: &str,
    attempts: &[Attempt],
) -> Result<Option<String>, Error> {
    const TEMPLATE: &str = include_str!("../../sql/call_sql_batch.sql");
    let events: Vec<i64> = attempts.iter().map(|attempt| attempt.event.id.0).collect();
    let handler = attempts.first().map_or("", |attempt| &*attempt.handler);
    let row = transaction.query_one(&TEMPLATE.replace("handler_function", function), &[&events, &handler]).await;
    let returned: Option<RawJson> = row.and_then(|row| row.try_get(0)).map_err(failed("call_sql_batch"))?;
    Ok(returned.map(|json| json.0))
}

/// Lets PostgreSQL end every further statement of the transaction that takes longer than this.
pub async fn limit(transaction: &Transaction<'_>, longest: Duration) -> Result<(), Error> {
    let milliseconds = longest.as_millis().min(i32::MAX.unsigned_abs().into()).to_string();
    execute_on(transaction, sql!("limit_statements"), &[&milliseconds]).await.map(drop)
}

/// Finishes deliveries; returns those that are. If one is missing, somebody else has finished it, or took it away, and the transaction
/// must be rolled back.
pub async fn finish(
    transaction: &Transaction<'_>,
    ended: &[(&Attempt, Option<&Value>)],
    ran: Duration,
) -> Result<HashSet<EventId>, Error> {
    let handler = ended.first().map_or("", |(attempt, _)| &*attempt.handler);
    let ran = i64::try_from(ran.as_micros()).unwrap_or(i64::MAX);
    let (mut events, mut numbers, mut results, mut have_row) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &(attempt, result) in ended {
        events.push(attempt.event.id.0);
        numbers.push(attempt.number.cast_signed());
        results.push(result);
        have_row.push(attempt.has_row);
    }
    let params: super::Params<'_> = &[&events, &handler, &numbers, &ran, &results, &have_row];
    let rows = query_on(transaction, sql!("finish_in_handler"), params).await?;
    Ok(rows.iter().map(|row| EventId(row.get("event_id"))).collect())
}
