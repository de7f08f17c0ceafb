//! What an operator asks: backlog, events, one event's whole story.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{Error, RawJson, Store, sql};
use crate::event::{self, EventId};
use crate::trace::Trace;

/// One handler's line in `outbox.backlog`.
#[derive(Debug, Serialize)]
pub struct Backlog {
    pub handler: String,
    pub kind: String,
    pub absent: bool,
    pub pending: i64,
    pub scheduled: i64,
    pub retrying: i64,
    pub running: i64,
    pub waiting: i64,
    pub blocked: i64,
    pub dead: i64,
    /// Seconds since the oldest delivery that could run was inserted.
    #[serde(rename = "oldest_age_seconds")]
    pub oldest_age: Option<f64>,
    pub finished: Option<i64>,
    pub finished_per_second: Option<f64>,
    /// By hand, or because the target answered that it is gone.
    pub paused: bool,
    pub paused_at: Option<Timestamp>,
    pub paused_until: Option<Timestamp>,
    pub paused_by: Option<String>,
    pub pause_reason: Option<String>,
    /// `closed`, or `open`: nothing is sent but probes.
    pub breaker: String,
    pub breaker_since: Option<Timestamp>,
    pub breaker_error: Option<String>,
    /// What counts instead of the configuration.
    pub limit_concurrency: Option<i32>,
    pub limit_rate: Option<String>,
    pub limited_at: Option<Timestamp>,
    pub limited_by: Option<String>,
}

/// One event in a list.
#[derive(Debug, Serialize)]
pub struct Listed {
    pub id: i64,
    pub topic: String,
    pub key: Option<String>,
    pub created_at: Timestamp,
    /// State by handler.
    pub deliveries: Value,
}

/// Which events to list.
#[derive(Debug, Default)]
pub struct Filter {
    pub below: Option<i64>,
    pub topic: Option<String>,
    pub key: Option<String>,
    pub state: Option<String>,
    pub limit: i64,
}

/// One event, its deliveries and their attempts.
#[derive(Debug, Serialize)]
pub struct Story {
    pub id: i64,
    pub topic: String,
    pub key: Option<String>,
    pub payload: Box<serde_json::value::RawValue>,
    pub headers: Value,
    /// The trace that its headers name.
    pub trace_id: Option<String>,
    /// The one that begins with it where they name none, if spans are exported.
    #[serde(skip)]
    pub own_trace_id: String,
    pub dedup_key: Option<String>,
    pub due_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub priority: i16,
    pub created_at: Timestamp,
    pub deliveries: Vec<DeliveryStory>,
    /// What they have emitted, the first hundred events.
    pub emitted: Vec<EmittedStory>,
    /// What was done by hand, the first hundred.
    pub operations: Vec<Operation>,
}

/// Something that somebody did by hand with a delivery of a [`Story`].
#[derive(Debug, Serialize)]
pub struct Operation {
    pub handler: Option<String>,
    pub at: Timestamp,
    pub role: String,
    pub action: String,
    pub detail: Value,
}

/// An event that a delivery of a [`Story`] has emitted.
#[derive(Debug, Serialize)]
pub struct EmittedStory {
    pub id: i64,
    pub topic: String,
}

/// One delivery of a [`Story`].
#[derive(Debug, Serialize)]
pub struct DeliveryStory {
    pub handler: String,
    pub state: String,
    pub attempts: i32,
    pub due_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub last_error: Option<String>,
    /// What an attempt said last, and when.
    pub progress: Option<Value>,
    pub heartbeat_at: Option<Timestamp>,
    pub result: Option<Value>,
    /// Those that did not simply succeed the first time.
    pub history: Vec<AttemptStory>,
}

/// One attempt of a [`DeliveryStory`].
#[derive(Debug, Serialize)]
pub struct AttemptStory {
    pub attempt: i32,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub outcome: String,
    pub error: Option<String>,
    pub response: Option<String>,
}

impl Store {
    pub async fn backlog(&self) -> Result<Vec<Backlog>, Error> {
        let rows = self.query(sql!("backlog"), &[]).await?;
        let line = |row: &tokio_postgres::Row| Backlog {
            handler: row.get("handler"),
            kind: row.get("kind"),
            absent: row.get("absent"),
            pending: row.get("pending"),
            scheduled: row.get("scheduled"),
            retrying: row.get("retrying"),
            running: row.get("running"),
            waiting: row.get("waiting"),
            blocked: row.get("blocked"),
            dead: row.get("dead"),
            oldest_age: row.get("oldest_age"),
            finished: row.get("finished"),
            finished_per_second: row.get("finished_per_second"),
            paused: row.get("paused"),
            paused_at: row.get("paused_at"),
            paused_until: row.get("paused_until"),
            paused_by: row.get("paused_by"),
            pause_reason: row.get("pause_reason"),
            breaker: row.get("breaker"),
            breaker_since: row.get("breaker_since"),
            breaker_error: row.get("breaker_error"),
            limit_concurrency: row.get("limit_concurrency"),
            limit_rate: row.get("limit_rate"),
            limited_at: row.get("limited_at"),
            limited_by: row.get("limited_by"),
        };
        Ok(rows.iter().map(line).collect())
    }

    /// The newest events that fit the filter, newest first.
    pub async fn events(&self, filter: &Filter) -> Result<Vec<Listed>, Error> {
        let Filter { below, topic, key, state, limit } = filter;
        let rows = self.query(sql!("events"), &[below, topic, key, state, limit]).await?;
        let listed = |row: &tokio_postgres::Row| Listed {
            id: row.get("id"),
            topic: row.get("topic"),
            key: row.get("key"),
            created_at: row.get("created_at"),
            deliveries: row.get("deliveries"),
        };
        Ok(rows.iter().map(listed).collect())
    }

    /// Everything about one event; `None` when there is no such event (any more).
    pub async fn story(&self, id: i64) -> Result<Option<Story>, Error> {
        let Some(row) = self.query_opt(sql!("show_event"), &[&id]).await? else { return Ok(None) };
        let payload = row.get::<_, RawJson>("payload").0;
        let (id, created_at): (i64, Timestamp) = (row.get("id"), row.get("created_at"));
        let origin = event::origin(row.get("installation"), EventId(id), created_at);
        Ok(Some(Story {
            id,
            topic: row.get("topic"),
            key: row.get("key"),
            // PostgreSQL has just printed it, so it is JSON; `null` stands for what cannot be.
            payload: serde_json::value::RawValue::from_string(payload).unwrap_or_default(),
            headers: row.get("headers"),
            trace_id: Trace::of_headers(&row.get::<_, RawJson>("headers").0).map(|trace| trace.id.to_string()),
            own_trace_id: Trace::derived(&origin, 1.0).id.to_string(),
            dedup_key: row.get("dedup_key"),
            due_at: row.get("due_at"),
            expires_at: row.get("expires_at"),
            priority: row.get("priority"),
            created_at,
            deliveries: self.deliveries(id).await?,
            emitted: self.emitted(id).await?,
            operations: self.operations(id).await?,
        }))
    }

    async fn emitted(&self, id: i64) -> Result<Vec<EmittedStory>, Error> {
        let rows = self.query(sql!("show_emitted"), &[&id]).await?;
        let emitted = |row: &tokio_postgres::Row| EmittedStory { id: row.get("id"), topic: row.get("topic") };
        Ok(rows.iter().map(emitted).collect())
    }

    async fn operations(&self, id: i64) -> Result<Vec<Operation>, Error> {
        let rows = self.query(sql!("show_operations"), &[&id]).await?;
        let operation = |row: &tokio_postgres::Row| Operation {
            handler: row.get("handler"),
            at: row.get("at"),
            role: row.get("role"),
            action: row.get("action"),
            detail: row.get("detail"),
        };
        Ok(rows.iter().map(operation).collect())
    }

    async fn deliveries(&self, id: i64) -> Result<Vec<DeliveryStory>, Error> {
        let deliveries = self.query(sql!("show_deliveries"), &[&id]).await?;
        let attempts = self.query(sql!("show_attempts"), &[&id]).await?;
        let attempt = |row: &tokio_postgres::Row| AttemptStory {
            attempt: row.get("attempt"),
            started_at: row.get("started_at"),
            finished_at: row.get("finished_at"),
            outcome: row.get("outcome"),
            error: row.get("error"),
            response: row.get("response"),
        };
        let delivery = |row: &tokio_postgres::Row| {
            let handler: String = row.get("handler");
            let history = attempts.iter().filter(|a| a.get::<_, &str>("handler") == handler).map(attempt).collect();
            DeliveryStory {
                handler,
                state: row.get("state"),
                attempts: row.get("attempts"),
                due_at: row.get("due_at"),
                started_at: row.get("started_at"),
                finished_at: row.get("finished_at"),
                last_error: row.get("last_error"),
                progress: row.get("progress"),
                heartbeat_at: row.get("heartbeat_at"),
                result: row.get("result"),
                history,
            }
        };
        Ok(deliveries.iter().map(delivery).collect())
    }

    /// What the daemon needs and this role may not do, in words.
    pub async fn missing_rights(&self) -> Result<Vec<String>, Error> {
        Ok(self.query(sql!("missing_rights"), &[]).await?.iter().map(|row| row.get("missing")).collect())
    }

    /// Whether a connection pooler hands this session's statements to different server processes.
    pub async fn is_pooled(&self) -> Result<bool, Error> {
        let first = self.backend().await?;
        for _ in 0..3 {
            if self.backend().await? != first {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
