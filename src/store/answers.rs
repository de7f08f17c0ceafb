//! What the daemon's own port asks for: the answers of callbacks, and how far an event is. On sessions of a pool: nobody leads here.

use deadpool_postgres::Client;
use serde_json::Value;

use super::{Error, failed, sql};
use crate::callback::{CallbackKey, Callee};

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

/// Gives a delivery its answer; `false` when it was not there to be answered.
pub async fn answer(client: &Client, callee: &Callee, said: &Said) -> Result<bool, Error> {
    let (done, result, error, dead) = match said {
        Said::Done(result) => (true, result.as_ref(), None, false),
        Said::Failed { error, dead } => (false, None, Some(error), *dead),
    };
    let Callee { event, created_at, handler } = callee;
    let row = one(client, sql!("answer"), &[&event.0, handler, created_at, &done, &result, &error, &dead]).await?;
    Ok(row.get("accepted"))
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
