//! Events that deliveries emit, in the transaction that finishes them.

use tokio_postgres::Transaction;
use tokio_postgres::types::ToSql;

use super::{Error, RawJson, Store, execute_on, sql};
use crate::emit::Emit;

/// Events to emit: those that always are, and those with a dedup key.
#[derive(Debug, Default)]
pub struct Emitted {
    always: Columns,
    once: Columns,
}

/// A column per parameter of `emit.sql` and `emit_once.sql`.
#[derive(Debug, Default)]
struct Columns {
    topics: Vec<String>,
    payloads: Vec<RawJson>,
    keys: Vec<Option<String>>,
    headers: Vec<serde_json::Value>,
    /// In µs.
    delays: Vec<Option<i64>>,
    dedup_keys: Vec<Option<String>>,
}

impl Emitted {
    pub fn push(&mut self, emit: Emit) {
        let columns = if emit.dedup_key.is_some() { &mut self.once } else { &mut self.always };
        columns.topics.push(emit.topic);
        columns.payloads.push(RawJson(emit.payload));
        columns.keys.push(emit.key);
        columns.headers.push(serde_json::json!(emit.headers));
        let micros = |delay: std::time::Duration| i64::try_from(delay.as_micros()).unwrap_or(i64::MAX);
        columns.delays.push(emit.delay.map(micros));
        columns.dedup_keys.push(emit.dedup_key);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.always.is_empty() && self.once.is_empty()
    }
}

impl Columns {
    fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    fn params(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.topics, &self.payloads, &self.keys, &self.headers, &self.delays]
    }

    fn params_once(&self) -> [&(dyn ToSql + Sync); 6] {
        [&self.topics, &self.payloads, &self.keys, &self.headers, &self.delays, &self.dedup_keys]
    }
}

impl Store {
    /// Emits events within the transaction that is open.
    pub async fn emit(&self, emitted: &Emitted) -> Result<(), Error> {
        if !emitted.always.is_empty() {
            self.execute(sql!("emit"), &emitted.always.params()).await?;
        }
        if !emitted.once.is_empty() {
            self.execute(sql!("emit_once"), &emitted.once.params_once()).await?;
        }
        Ok(())
    }
}

/// The same inside a SQL handler's own transaction.
pub async fn emit_within(transaction: &Transaction<'_>, emit: Vec<Emit>) -> Result<(), Error> {
    let mut emitted = Emitted::default();
    for one in emit {
        emitted.push(one);
    }
    if !emitted.always.is_empty() {
        execute_on(transaction, sql!("emit"), &emitted.always.params()).await?;
    }
    if !emitted.once.is_empty() {
        execute_on(transaction, sql!("emit_once"), &emitted.once.params_once()).await?;
    }
    Ok(())
}
