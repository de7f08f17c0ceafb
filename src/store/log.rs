//! Reading the log: pages behind a position, positions, the bell's flag, the sweep.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures_util::{TryStreamExt as _, pin_mut};
use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::{Cause, Error, RawJson, Store, failed, sql};
use crate::event::{Event, EventId};
use crate::snapshot::Snapshot;

/// Where a reader stands: what it has consumed, and how much of some transactions besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub position: Snapshot,
    /// Of these transactions, which `position` does not see, the rows up to this id are consumed. More than one: a
    /// page may end inside one transaction, and the next inside an older one that has committed meanwhile.
    pub partial: BTreeMap<u64, i64>,
}

/// One event as the log holds it, with what decides when it may run.
#[derive(Debug)]
pub struct Logged {
    pub event: Event,
    pub xid: u64,
    pub priority: i16,
    /// `due_at` lies so far ahead.
    pub due_in: Option<Duration>,
    /// `expires_at` lies so far ahead; zero when it has passed.
    pub expires_in: Option<Duration>,
}

/// One read of the log.
#[derive(Debug)]
pub struct Page {
    pub events: Vec<Logged>,
    /// Where the reader stands after it.
    pub cursor: Cursor,
    /// Whether the page was full, so that there is more to read at once.
    pub full: bool,
    /// The snapshot of the read, for a page at the head.
    pub snapshot: Option<Snapshot>,
}

/// How much one page holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    pub events: usize,
    /// A page ends after the event that reaches this weight, however few events it has.
    pub bytes: usize,
}

impl Cursor {
    #[must_use]
    pub fn at(position: Snapshot) -> Self {
        Self { position, partial: BTreeMap::new() }
    }

    /// The (xid, id) behind which everything newer than the position lies.
    fn range_start(&self) -> (u64, i64) {
        let xmax = self.position.xmax();
        match self.partial.last_key_value() {
            Some((&xid, &id)) if xid >= xmax => (xid, id),
            _ => (xmax, i64::MIN),
        }
    }

    /// The transactions in progress in the position, as parameters: xid and the last id consumed of each.
    fn late(&self) -> (Vec<String>, Vec<i64>) {
        let xids = self.position.in_progress();
        let after = xids.iter().map(|xid| self.partial.get(xid).copied().unwrap_or(i64::MIN));
        (xids.iter().map(u64::to_string).collect(), after.collect())
    }

    /// Where the reader stands after a page that ended, full, with the event (xid, id). Pages are read in that order
    /// and up to `end`, which includes this cursor.
    #[must_use]
    pub fn after_full(&self, xid: u64, id: i64, end: &Self) -> Self {
        let position = self.position.consumed_below(xid, &end.position);
        // What `end` has of a transaction below `xid` was read, too; above it nothing was.
        let read = end.partial.range(..xid);
        let known = self.partial.iter().chain(read).map(|(&xid, &id)| (xid, id)).chain([(xid, id)]);
        let partial = known.filter(|&(xid, _)| !position.sees(xid)).collect();
        Self { position, partial }
    }
}

impl Store {
    /// The snapshot of this moment and the last event id given out.
    pub async fn snapshot(&self) -> Result<(Snapshot, i64), Error> {
        let row = self.query_one(sql!("snapshot"), &[]).await?;
        let snapshot = row.get::<_, &str>("snapshot").parse().map_err(failed("snapshot"))?;
        Ok((snapshot, row.get("last_id")))
    }

    /// One page of everything visible now that the cursor has not consumed.
    pub async fn tail_head(&self, cursor: &Cursor, limit: PageLimit) -> Result<Page, Error> {
        let (late, after) = cursor.late();
        let (xid, id) = cursor.range_start();
        let (xid, rows) = (xid.to_string(), rows(limit));
        let (events, snapshot, full) = if late.is_empty() {
            self.page(sql!("tail_new"), &[&xid, &id, &rows], limit).await?
        } else {
            self.page(sql!("tail_head"), &[&late, &after, &xid, &id, &rows], limit).await?
        };
        let now = snapshot.unwrap_or_else(|| cursor.position.clone());
        let end = Cursor::at(now.clone());
        let cursor = match events.last() {
            Some(last) if full => cursor.after_full(last.xid, last.event.id.0, &end),
            _ => end,
        };
        Ok(Page { events, cursor, full, snapshot: Some(now) })
    }

    /// One page of what the head has consumed and the cursor has not. The head's position must include the cursor's.
    pub async fn tail_behind(&self, cursor: &Cursor, head: &Cursor, limit: PageLimit) -> Result<Page, Error> {
        let (late, after) = cursor.late();
        let (xid, id) = cursor.range_start();
        let partial_xids: Vec<String> = head.partial.keys().map(u64::to_string).collect();
        let partial_ids: Vec<i64> = head.partial.values().copied().collect();
        let upper = head.partial.keys().map(|xid| xid + 1).fold(head.position.xmax(), u64::max);
        let params: [&(dyn ToSql + Sync); 9] = [
            &late,
            &after,
            &xid.to_string(),
            &id,
            &rows(limit),
            &head.position.to_string(),
            &partial_xids,
            &partial_ids,
            &upper.to_string(),
        ];
        let (events, _, full) = self.page(sql!("tail_behind"), &params, limit).await?;
        let cursor = match events.last() {
            Some(last) if full => cursor.after_full(last.xid, last.event.id.0, head),
            _ => head.clone(),
        };
        Ok(Page { events, cursor, full, snapshot: None })
    }

    /// Streams a page and stops at the byte limit, so that a page of large payloads never stands in memory as a whole.
    async fn page(
        &self,
        sql: super::Sql,
        params: &[&(dyn ToSql + Sync)],
        limit: PageLimit,
    ) -> Result<(Vec<Logged>, Option<Snapshot>, bool), Error> {
        let name = sql.name;
        let statement = self.prepare(&sql).await?;
        let stream = self.session.client.query_raw(&statement, params.iter().copied()).await.map_err(failed(name))?;
        pin_mut!(stream);
        let (mut events, mut snapshot, mut bytes) = (Vec::new(), None, 0);
        while let Some(row) = stream.try_next().await.map_err(failed(name))? {
            if let Some(text) = row.try_get::<_, Option<&str>>("snapshot").map_err(failed(name))? {
                snapshot = Some(text.parse().map_err(failed(name))?);
            } else {
                let logged = logged(&row).map_err(failed(name))?;
                bytes += logged.event.weight();
                events.push(logged);
                if bytes >= limit.bytes {
                    break;
                }
            }
        }
        let full = events.len() >= limit.events || bytes >= limit.bytes;
        if !events.is_sorted_by_key(|e| (e.xid, e.event.id)) {
            return Err(failed(name)(Cause::PageOrder));
        }
        Ok((events, snapshot, full))
    }

    /// Which of these deliveries have been settled already.
    pub async fn settled_among(&self, events: &[i64], handlers: &[&str]) -> Result<HashSet<(EventId, String)>, Error> {
        let (lowest, highest) = (events.iter().min().copied(), events.iter().max().copied());
        let rows = self.query(sql!("settled_among"), &[&events, &handlers, &lowest, &highest]).await?;
        Ok(rows.iter().map(|row| (EventId(row.get("event_id")), row.get("handler"))).collect())
    }

    /// Sets the bell's flag.
    pub async fn bell_set(&self, asleep: bool) -> Result<(), Error> {
        let flag: i64 = if asleep { 1 } else { 2 };
        self.execute(sql!("bell_set"), &[&flag]).await.map(drop)
    }

    /// The transactions in progress that may have inserted events.
    pub async fn bell_producers(&self) -> Result<Vec<u64>, Error> {
        let row = self.query_one(sql!("bell_producers"), &[]).await?;
        row.get::<_, Vec<&str>>("xids").into_iter().map(|xid| number(xid).map_err(failed("bell_producers"))).collect()
    }

    /// Schedules what the tail never saw among the ids from `from` to below `to`; returns how many that were.
    pub async fn sweep(&self, from: i64, to: i64, positions: &[(String, Snapshot)]) -> Result<i64, Error> {
        let handlers: Vec<&str> = positions.iter().map(|(name, _)| name.as_str()).collect();
        let texts: Vec<String> = positions.iter().map(|(_, position)| position.to_string()).collect();
        let row = self.query_one(sql!("sweep"), &[&from, &to, &handlers, &texts]).await?;
        Ok(row.get("found"))
    }

    /// The lowest id from this one on of which there is something; `None` when there is none.
    pub async fn next_in_log(&self, from: i64) -> Result<Option<i64>, Error> {
        Ok(self.query_one(sql!("next_in_log"), &[&from]).await?.get("id"))
    }

    /// Forgets dedup keys whose window is over; returns how many.
    pub async fn trim_dedup(&self) -> Result<u64, Error> {
        self.execute(sql!("trim_dedup"), &[]).await
    }

    /// Forgets what consumers did long ago; how many keys.
    pub async fn trim_consumed(&self) -> Result<u64, Error> {
        self.execute(sql!("trim_consumed"), &[]).await
    }

    /// Forgets what was done by hand, to one event after so long, or like all else after a year; how many.
    pub async fn trim_operation(&self, kept: Option<Duration>) -> Result<u64, Error> {
        self.execute(sql!("trim_operation"), &[&kept.map(|kept| kept.as_secs_f64())]).await
    }

    /// Removes old checkpoints.
    pub async fn trim_position(&self) -> Result<u64, Error> {
        self.execute(sql!("trim_position"), &[]).await
    }
}

fn rows(limit: PageLimit) -> i64 {
    i64::try_from(limit.events).unwrap_or(i64::MAX)
}

fn number(text: &str) -> Result<u64, Cause> {
    text.parse().map_err(|_| Cause::TransactionId(text.to_owned()))
}

fn logged(row: &Row) -> Result<Logged, Cause> {
    Ok(Logged {
        event: event(row, "id")?,
        xid: number(row.try_get("xid")?)?,
        priority: row.try_get("priority")?,
        due_in: row.try_get::<_, Option<f64>>("due_in")?.filter(|&secs| secs > 0.0).map(seconds),
        expires_in: row.try_get::<_, Option<f64>>("expires_in")?.map(seconds),
    })
}

pub(super) fn event(row: &Row, id: &str) -> Result<Event, tokio_postgres::Error> {
    Ok(Event {
        id: EventId(row.try_get(id)?),
        topic: row.try_get("topic")?,
        key: row.try_get("key")?,
        payload: row.try_get::<_, RawJson>("payload")?.0,
        headers: row.try_get::<_, RawJson>("headers")?.0,
        created_at: row.try_get::<_, Timestamp>("created_at")?,
    })
}

/// Seconds from PostgreSQL as a duration; negative ones are zero, endless ones a thousand years.
pub(super) fn seconds(secs: f64) -> Duration {
    Duration::from_secs_f64(secs.clamp(0.0, 3.2e10))
}
