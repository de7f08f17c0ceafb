//! Writing states back: batches of outcomes, claims of what is due. All of it belongs on the session that leads.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;

use super::log::{event, seconds};
use super::registry::{Limits, Pause, limits, pause};
use super::{Error, Store, failed, sql};
use crate::event::{Event, EventId};
use crate::snapshot::Snapshot;

/// Deliveries that finish: a column per parameter of `append_done.sql`.
#[derive(Debug, Default)]
pub struct Finished {
    pub event_ids: Vec<i64>,
    pub handlers: Vec<Arc<str>>,
    pub outcomes: Vec<&'static str>,
    pub attempts: Vec<i32>,
    /// µs since the attempt began; `None` when there was none.
    pub began: Vec<Option<i64>>,
    pub ended: Vec<i64>,
    pub results: Vec<Option<serde_json::Value>>,
}

/// Deliveries that get or keep a row in `outbox.open`: a column per parameter of `park.sql` and `reopen.sql`.
#[derive(Debug, Default)]
pub struct Opened {
    pub event_ids: Vec<i64>,
    pub handlers: Vec<Arc<str>>,
    pub states: Vec<&'static str>,
    pub attempts: Vec<i32>,
    pub failures: Vec<i32>,
    /// µs until it is due; `None` when it does not wait for a time.
    pub due: Vec<Option<i64>>,
    pub polls: Vec<i32>,
    /// µs until the answer must be there.
    pub answers: Vec<Option<i64>>,
    /// µs since the running attempt began.
    pub began: Vec<Option<i64>>,
    pub errors: Vec<Option<String>>,
    /// Of steps: the results before them, as JSON.
    pub results: Vec<Option<String>>,
}

/// Attempts for the history: a column per parameter of `append_attempt.sql`.
#[derive(Debug, Default)]
pub struct Attempts {
    pub event_ids: Vec<i64>,
    pub handlers: Vec<Arc<str>>,
    pub attempts: Vec<i32>,
    pub began: Vec<i64>,
    pub ended: Vec<i64>,
    pub outcomes: Vec<&'static str>,
    pub errors: Vec<Option<String>>,
    pub responses: Vec<Option<String>>,
}

/// Running attempts: a column per parameter of `heartbeat.sql`, and the first three for `heartbeat_age.sql`.
#[derive(Debug, Default)]
pub struct Heartbeats {
    pub event_ids: Vec<i64>,
    pub handlers: Vec<Arc<str>>,
    pub attempts: Vec<i32>,
    /// µs since it was said.
    pub said: Vec<i64>,
    /// `None` keeps what was said before.
    pub progress: Vec<Option<serde_json::Value>>,
}

impl Heartbeats {
    /// Adds an attempt; what it said is added by whoever has something to say.
    pub fn push(&mut self, event: EventId, handler: Arc<str>, attempt: u32) {
        self.event_ids.push(event.0);
        self.handlers.push(handler);
        self.attempts.push(attempt.cast_signed());
    }
}

/// A delivery from `outbox.open` whose next attempt has been started in the database.
#[derive(Debug)]
pub struct Claimed {
    pub event: Event,
    pub handler: String,
    pub attempt: u32,
    pub failures: u32,
    /// How often it has answered "not yet", and what is left of its time.
    pub polls: u32,
    pub answer_in: Option<Duration>,
    pub expires_in: Option<Duration>,
    /// Of a step of a flow: the results before it.
    pub results: Option<serde_json::Value>,
    /// It waited for an answer, and none came in time: there is nothing to run.
    pub unanswered: bool,
    /// For how long it has been due.
    pub overdue: Duration,
    /// No other row has its key.
    pub alone: bool,
    /// It was asked for because its key had a place, not because it was due.
    pub parked: bool,
}

/// What to claim of a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub handler: Arc<str>,
    /// Deliveries that are due, at most.
    pub due: usize,
    /// Keys of which so many rows that wait for a place may go, at most.
    pub parked: Vec<(Arc<str>, usize)>,
}

impl Wanted {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.due == 0 && self.parked.is_empty()
    }
}

/// What a claim found of a handler.
#[derive(Debug, Default)]
pub struct Found {
    pub claimed: Vec<Claimed>,
    /// One for every key that was asked for.
    pub parked: Vec<Parked>,
    /// When the next delivery is due; zero when one is due already and had no slot.
    pub due_in: Option<Duration>,
}

/// The rows of a key that wait for a place, after a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    pub key: String,
    pub claimed: usize,
    /// Others are there.
    pub left: bool,
}

/// How a handler stands in the database.
#[derive(Debug)]
pub struct Standing {
    pub handler: String,
    pub found: Found,
    pub pause: Option<Pause>,
    pub limits: Limits,
}

/// What a claim found.
#[derive(Debug, Default)]
pub struct Claim {
    /// One for every handler that was asked for.
    pub standings: Vec<Standing>,
    /// What it saw of the database; `None` when it asked for no handler.
    pub snapshot: Option<Snapshot>,
    /// Deliveries that were cancelled; their attempts must end.
    pub cancelled: Vec<(EventId, String)>,
    /// Instances of flows that were, and have no row.
    pub cancelled_flows: Vec<(EventId, String)>,
}

pub type Pairs = HashSet<(EventId, String)>;

impl Store {
    /// Finishes deliveries that have no open row. Fails as a whole when one of them has finished already.
    pub async fn append_done(&self, rows: &Finished) -> Result<u64, Error> {
        let handlers = texts(&rows.handlers);
        let params: super::Params<'_> =
            &[&rows.event_ids, &handlers, &rows.outcomes, &rows.attempts, &rows.began, &rows.ended, &rows.results];
        self.execute(sql!("append_done"), params).await
    }

    /// Finishes deliveries that have a running row which names their attempt; returns those that did.
    pub async fn finish_open(&self, rows: &Finished) -> Result<Pairs, Error> {
        let handlers = texts(&rows.handlers);
        let params: super::Params<'_> =
            &[&rows.event_ids, &handlers, &rows.outcomes, &rows.attempts, &rows.began, &rows.ended, &rows.results];
        Ok(pairs(&self.query(sql!("finish_open"), params).await?))
    }

    /// Opens rows for deliveries that have none.
    pub async fn park(&self, rows: &Opened) -> Result<u64, Error> {
        let handlers = texts(&rows.handlers);
        let params: super::Params<'_> = &[
            &rows.event_ids,
            &handlers,
            &rows.states,
            &rows.attempts,
            &rows.failures,
            &rows.due,
            &rows.began,
            &rows.errors,
            &rows.polls,
            &rows.answers,
            &rows.results,
        ];
        self.execute(sql!("park"), params).await
    }

    /// Gives instances of flows their rows, and moves them on.
    pub async fn begin_flows(&self, event_ids: &[i64], flows: &[Arc<str>]) -> Result<(), Error> {
        self.query(sql!("begin_flows"), &[&event_ids, &texts(flows)]).await.map(drop)
    }

    /// Ends running attempts without finishing their deliveries; returns those whose row still named the attempt.
    pub async fn reopen(&self, rows: &Opened) -> Result<Pairs, Error> {
        let handlers = texts(&rows.handlers);
        let params: super::Params<'_> = &[
            &rows.event_ids,
            &handlers,
            &rows.states,
            &rows.attempts,
            &rows.failures,
            &rows.due,
            &rows.errors,
            &rows.polls,
            &rows.answers,
        ];
        Ok(pairs(&self.query(sql!("reopen"), params).await?))
    }

    /// Removes the running rows of deliveries whose handler committed by itself.
    pub async fn close_committed(&self, rows: &Finished) -> Result<u64, Error> {
        let handlers = texts(&rows.handlers);
        self.execute(sql!("close_committed"), &[&rows.event_ids, &handlers, &rows.attempts]).await
    }

    /// Keeps attempts in the history.
    pub async fn append_attempt(&self, rows: &Attempts) -> Result<u64, Error> {
        let handlers = texts(&rows.handlers);
        let params: super::Params<'_> = &[
            &rows.event_ids,
            &handlers,
            &rows.attempts,
            &rows.began,
            &rows.ended,
            &rows.outcomes,
            &rows.errors,
            &rows.responses,
        ];
        self.execute(sql!("append_attempt"), params).await
    }

    /// Keeps what running attempts have said; returns how many of them still had a row.
    pub async fn heartbeat(&self, rows: &Heartbeats) -> Result<u64, Error> {
        let handlers = texts(&rows.handlers);
        self.execute(sql!("heartbeat"), &[&rows.event_ids, &handlers, &rows.attempts, &rows.said, &rows.progress]).await
    }

    /// How long ago these running attempts were heard of; one that never was is missing.
    pub async fn heartbeat_age(&self, rows: &Heartbeats) -> Result<HashMap<(EventId, String), Duration>, Error> {
        let handlers = texts(&rows.handlers);
        let found = self.query(sql!("heartbeat_age"), &[&rows.event_ids, &handlers, &rows.attempts]).await?;
        let age = |row: &Row| Duration::from_micros(row.get::<_, i64>("age").unsigned_abs());
        Ok(found.iter().map(|row| ((EventId(row.get("event_id")), row.get("handler")), age(row))).collect())
    }

    /// Starts the next attempt of what is due, and of what waits for its key, at most so many per handler and key.
    pub async fn claim_due(&self, want: &[Wanted]) -> Result<Claim, Error> {
        let handlers: Vec<&str> = want.iter().map(|wanted| &*wanted.handler).collect();
        let slots: Vec<i64> = want.iter().map(|wanted| wanted.due.try_into().unwrap_or(i64::MAX)).collect();
        let (mut of, mut keys, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for Wanted { handler, parked, .. } in want {
            for (key, rows) in parked {
                of.push(&**handler);
                keys.push(&**key);
                places.push(i64::try_from(*rows).unwrap_or(i64::MAX));
            }
        }
        let rows = self.query(sql!("claim_due"), &[&handlers, &slots, &of, &keys, &places]).await?;
        let mut claim = Claim::default();
        let mut found: HashMap<&str, Found> = HashMap::new();
        for row in &rows {
            let handler: &str = row.get("handler");
            match row.get("what") {
                "handler" => {
                    claim.snapshot = Some(row.get::<_, &str>("snapshot").parse().map_err(failed("claim_due"))?);
                    claim.standings.push(standing(row));
                }
                "cancelled_flow" => claim.cancelled_flows.push((EventId(row.get("event_id")), handler.to_owned())),
                "cancelled" => claim.cancelled.push((EventId(row.get("event_id")), handler.to_owned())),
                "key" => found.entry(handler).or_default().parked.push(parked(row)),
                what => {
                    let claimed = claimed(row, what).map_err(failed("claim_due"))?;
                    found.entry(handler).or_default().claimed.push(claimed);
                }
            }
        }
        for standing in &mut claim.standings {
            let Found { claimed, parked, .. } = found.remove(&*standing.handler).unwrap_or_default();
            (standing.found.claimed, standing.found.parked) = (claimed, parked);
        }
        Ok(claim)
    }

    /// Reruns or buries what a daemon that died left running; returns how many deliveries that were.
    pub async fn recover_running(&self, max_attempts: &[(Arc<str>, u32)], error: &str) -> Result<i64, Error> {
        let handlers: Vec<&str> = max_attempts.iter().map(|(handler, _)| &**handler).collect();
        let limits: Vec<i32> = max_attempts.iter().map(|&(_, max)| max.cast_signed()).collect();
        Ok(self.query_one(sql!("recover_running"), &[&handlers, &limits, &error]).await?.get("lost"))
    }
}

fn standing(row: &Row) -> Standing {
    let due_in = row.get::<_, Option<f64>>("due_in").map(seconds);
    let found = Found { due_in, ..Found::default() };
    Standing { handler: row.get("handler"), found, pause: pause(row), limits: limits(row) }
}

fn parked(row: &Row) -> Parked {
    let claimed = row.get::<_, i32>("attempt").unsigned_abs() as usize;
    Parked { key: row.get("key"), claimed, left: !row.get::<_, bool>("alone") }
}

fn claimed(row: &Row, what: &str) -> Result<Claimed, tokio_postgres::Error> {
    Ok(Claimed {
        event: event(row, "event_id")?,
        handler: row.try_get("handler")?,
        attempt: row.try_get::<_, i32>("attempt")?.cast_unsigned(),
        failures: row.try_get::<_, i32>("failures")?.cast_unsigned(),
        polls: row.try_get::<_, i32>("polls")?.cast_unsigned(),
        answer_in: row.try_get::<_, Option<f64>>("answer_in")?.map(seconds),
        expires_in: row.try_get::<_, Option<f64>>("expires_in")?.map(seconds),
        results: row.try_get("results")?,
        unanswered: what == "unanswered",
        overdue: seconds(row.try_get::<_, Option<f64>>("overdue")?.unwrap_or_default()),
        alone: row.try_get("alone")?,
        parked: what == "parked",
    })
}

fn texts(handlers: &[Arc<str>]) -> Vec<&str> {
    handlers.iter().map(|handler| &**handler).collect()
}

fn pairs(rows: &[Row]) -> Pairs {
    rows.iter().map(|row| (EventId(row.get("event_id")), row.get("handler"))).collect()
}
