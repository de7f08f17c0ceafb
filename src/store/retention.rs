//! What goes: partitions that are old and finished, and old rows one by one.

use std::time::Duration;

use super::log::seconds;
use super::{Error, Store, failed, sql};

/// The ids of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub first_id: i64,
    /// The first id behind it.
    pub next_id: i64,
}

/// What was found in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// It may go, as this snapshot saw it.
    Finished { snapshot: String },
    /// Something in it is old enough only after so long.
    Young { wait: Duration },
    /// A delivery in it has neither finished nor an open row.
    Pending,
}

/// A handler for which old events are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub handler: String,
    pub absent: bool,
    pub paused: bool,
    /// Of the oldest event that it has not come past.
    pub age: Duration,
}

impl Store {
    /// Makes partitions ahead, each for so long; returns how many.
    pub async fn add_partitions(&self, lasting: Duration) -> Result<i32, Error> {
        Ok(self.query_one(sql!("add_partitions"), &[&lasting.as_secs_f64()]).await?.get(0))
    }

    /// The partitions that may go as far as a glance tells.
    pub async fn old_partitions(&self, retention: Duration) -> Result<Vec<Partition>, Error> {
        let rows = self.query(sql!("old_partitions"), &[&retention.as_secs_f64()]).await?;
        Ok(rows.iter().map(|row| Partition { first_id: row.get("first_id"), next_id: row.get("next_id") }).collect())
    }

    /// Reads a partition once: may it go?
    pub async fn check_partition(&self, partition: Partition, retention: Duration) -> Result<Checked, Error> {
        let Partition { first_id, next_id } = partition;
        let params: super::Params<'_> = &[&first_id, &next_id, &retention.as_secs_f64()];
        let row = self.query_one(sql!("check_partition"), params).await?;
        Ok(match (row.get::<_, Option<f64>>("young_for"), row.get::<_, Option<bool>>("pending")) {
            (Some(wait), _) if wait > 0.0 => Checked::Young { wait: seconds(wait) },
            (_, Some(false)) => {
                Checked::Finished { snapshot: row.try_get("checked").map_err(failed("check_partition"))? }
            }
            _ => Checked::Pending,
        })
    }

    /// Empties a partition that was checked; whether it is empty, `None` when somebody uses it.
    pub async fn empty_partition(&self, partition: Partition, checked: &str) -> Result<Option<bool>, Error> {
        Ok(self.query_one(sql!("empty_partition"), &[&partition.first_id, &checked]).await?.get("emptied"))
    }

    /// Drops partitions that are empty and behind; `None` when a lock was in the way.
    pub async fn drop_partitions(&self) -> Result<Option<i32>, Error> {
        Ok(self.query_one(sql!("drop_partitions"), &[]).await?.get("dropped"))
    }

    /// Takes away what has finished among these ids and is older than that, some at a time; how many rows, `None` when a
    /// lock was in the way.
    pub async fn trim_log(&self, from: i64, to: i64, older: Duration) -> Result<Option<i64>, Error> {
        Ok(self.query_one(sql!("trim_log"), &[&from, &to, &older.as_secs_f64()]).await?.get("trimmed"))
    }

    /// The handlers for whom events are kept that are older than that.
    pub async fn held_back(&self, older: Duration) -> Result<Vec<Holding>, Error> {
        let rows = self.query(sql!("held_back"), &[&older.as_secs_f64()]).await?;
        let holding = |row: &tokio_postgres::Row| Holding {
            handler: row.get("handler"),
            absent: row.get("absent"),
            paused: row.get("paused"),
            age: seconds(row.get("age")),
        };
        Ok(rows.iter().map(holding).collect())
    }
}
