//! What the daemon's own port asks for: the answers of callbacks, and how far an event is. On sessions of a pool: nobody leads here.

use deadpool_postgres::Client;
use serde_json::Value;

use super::{Error, RawJson, failed, sql};
use crate::callback::{CallbackKey, Callee};
use crate::trace::{Trace, TraceId};

/// What a callback says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// It succeeded.
    Done(Option<Value>),
    /// It failed; it will never succeed if `dead`.
    Failed { error: String, dead: bool },
}

/// How far an event is.
#[derive(Debug)]
pub struct Standing {
    /// A list of objects, one for each delivery.
    pub deliveries: Value,
    /// Nothing of it runs any more, or waits to run.
    pub ended: bool,
}

/// The key that callback tokens are made with.
pub async fn callback_key(client: &Client) -> Result<CallbackKey, Error> {
    let row = one(client, sql!("callback_key"), &[]).await?;
    Ok(CallbackKey::new(row.get("key")))
}

/// A delivery that got its answer.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// The attempt that asked.
    pub attempt: u32,
    pub trace: Option<TraceId>,
}

/// Gives a delivery its answer; `None` when it was not there to be answered.
pub async fn answer(client: &Client, callee: &Callee, said: &Said) -> Result<Option<Answered>, Error> {
    let (done, result, error, dead) = match said {
        Said::Done(result) => (true, result.as_ref(), None, false),
        Said::Failed { error, dead } => (false, None, Some(error), *dead),
    };
    let Callee { event, created_at, handler } = callee;
    let row = one(client, sql!("answer"), &[&event.0, handler, created_at, &done, &result, &error, &dead]).await?;
    let trace = |headers: RawJson| Trace::of_headers(&headers.0).map(|trace| trace.id);
    Ok(row.get::<_, bool>("accepted").then(|| Answered {
        attempt: row.get::<_, Option<i32>>("attempt").unwrap_or_default().cast_unsigned(),
        trace: row.get::<_, Option<RawJson>>("headers").and_then(trace),
    }))
}

/// The state of a delivery, if it has a row.
pub async fn delivery_state(client: &Client, callee: &Callee) -> Result<Option<String>, Error> {
    Ok(one(client, sql!("delivery_state"), &[&callee.event.0, &callee.handler]).await?.get("state"))
}

/// How far an event is; `None` when there is no such event.
pub async fn event_states(client: &Client, event: i64) -> Result<Option<Standing>, Error> {
    let row = one(client, sql!("event_states"), &[&event]).await?;
    let ended = row.get("ended");
    Ok(row.get::<_, Option<Value>>("deliveries").map(|deliveries| Standing { deliveries, ended }))
}

async fn one(client: &Client, sql: super::Sql, params: super::Params<'_>) -> Result<tokio_postgres::Row, Error> {
    let statement = client.prepare_cached(sql.text).await.map_err(failed(sql.name))?;
    client.query_one(&statement, params).await.map_err(failed(sql.name))
}
