//! What an operator does. Each method calls a function of the schema; whoever has a right on it may as well call it in SQL.

use jiff::Timestamp;

use super::{Error, Store, sql};
use crate::config::RateLimit;

/// Which dead deliveries are meant; what is `None` lets everything pass.
#[derive(Debug, Default)]
pub struct DeadLetters {
    pub handler: Option<String>,
    /// A pattern.
    pub topic: Option<String>,
    /// Given up since.
    pub since: Option<Timestamp>,
    /// Given up before.
    pub until: Option<Timestamp>,
    /// A text in the last error.
    pub error: Option<String>,
}

/// Which events are handed to a handler again; what is `None` lets everything pass.
#[derive(Debug)]
pub struct Replay {
    pub handler: String,
    /// A pattern.
    pub topic: Option<String>,
    pub key: Option<String>,
    /// Created since.
    pub since: Option<Timestamp>,
    /// Created before.
    pub until: Option<Timestamp>,
    pub from_id: Option<i64>,
    pub to_id: Option<i64>,
    /// Why; kept with what they had come to.
    pub reason: Option<String>,
}

impl Store {
    /// Runs one delivery again now; whether there was one to run.
    pub async fn retry(&self, id: i64, handler: &str) -> Result<bool, Error> {
        Ok(self.query_one(sql!("retry"), &[&id, &handler]).await?.get(0))
    }

    /// The handlers whose delivery of this event is dead.
    pub async fn retryable(&self, id: i64) -> Result<Vec<String>, Error> {
        let rows = self.query(sql!("retryable"), &[&id]).await?;
        Ok(rows.iter().map(|row| row.get("handler")).collect())
    }

    /// Ends one delivery; whether there was one that has not ended.
    pub async fn cancel(&self, id: i64, handler: &str, reason: Option<&str>) -> Result<bool, Error> {
        Ok(self.query_one(sql!("cancel"), &[&id, &handler, &reason]).await?.get(0))
    }

    /// The handlers whose delivery of this event can be cancelled.
    pub async fn cancellable(&self, id: i64) -> Result<Vec<String>, Error> {
        let rows = self.query(sql!("cancellable"), &[&id]).await?;
        Ok(rows.iter().map(|row| row.get("handler")).collect())
    }

    /// Gives one dead delivery up for good; whether it was dead.
    pub async fn discard(&self, id: i64, handler: &str, reason: &str) -> Result<bool, Error> {
        Ok(self.query_one(sql!("discard"), &[&id, &handler, &reason]).await?.get(0))
    }

    /// Gives the dead deliveries that fit up for good, or only counts them; how many.
    pub async fn discard_dead(&self, which: &DeadLetters, reason: &str, dry_run: bool) -> Result<i64, Error> {
        let DeadLetters { handler, topic, since, until, error } = which;
        let row =
            self.query_one(sql!("discard_dead"), &[&reason, handler, topic, since, until, error, &dry_run]).await?;
        Ok(row.get(0))
    }

    /// Runs the dead deliveries that fit again, now or so many a second, or only counts them; how many.
    pub async fn redrive(&self, which: &DeadLetters, rate: Option<f64>, dry_run: bool) -> Result<i64, Error> {
        let DeadLetters { handler, topic, since, until, error } = which;
        Ok(self.query_one(sql!("redrive"), &[handler, topic, since, until, error, &rate, &dry_run]).await?.get(0))
    }

    /// Hands events to a handler again, now or so many a second, or only counts them; how many.
    pub async fn replay(&self, which: &Replay, rate: Option<f64>, most: i32, dry_run: bool) -> Result<i64, Error> {
        let Replay { handler, topic, key, since, until, from_id, to_id, reason } = which;
        let params: super::Params<'_> =
            &[handler, topic, key, since, until, from_id, to_id, reason, &rate, &dry_run, &most];
        Ok(self.query_one(sql!("replay"), params).await?.get(0))
    }

    /// Lets other limits count for a handler than the configured ones; whether there is such a handler.
    pub async fn set_limits(
        &self,
        handler: &str,
        concurrency: Option<i32>,
        rate: Option<RateLimit>,
    ) -> Result<bool, Error> {
        let rate = rate.map(|rate| rate.to_string());
        Ok(self.query_one(sql!("set_limits"), &[&handler, &concurrency, &rate]).await?.get(0))
    }

    /// Begins nothing more for a handler; whether there is such a handler.
    pub async fn pause(&self, handler: &str, reason: Option<&str>, until: Option<Timestamp>) -> Result<bool, Error> {
        Ok(self.query_one(sql!("pause"), &[&handler, &reason, &until]).await?.get(0))
    }

    /// Ends a handler's pause; whether it was paused.
    pub async fn resume(&self, handler: &str) -> Result<bool, Error> {
        Ok(self.query_one(sql!("resume"), &[&handler]).await?.get(0))
    }
}
