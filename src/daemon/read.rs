//! What is asked of the tail's session, one thing at a time: pages of the log and changes of the bell's flag.

use std::collections::HashSet;
use std::sync::Arc;

use super::tail::Read;
use super::write::LaneId;
use crate::event::EventId;
use crate::snapshot::Snapshot;
use crate::store::log::Page;
use crate::store::{Error, Store};

/// What an earlier term may have settled already: events visible in the snapshot with which this term began, and ids
/// that had been given out by then (a row applied by logical replication carries a transaction id of its own).
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) snapshot: Snapshot,
    pub(super) last_id: i64,
}

/// One thing to ask.
pub(super) enum Job {
    Read {
        read: Read,
        handlers: Vec<Arc<str>>,
    },
    FallAsleep,
    WakeUp,
    /// What it says already, which may be another value now.
    SetFlag {
        asleep: bool,
    },
}

/// Its answer.
pub(super) enum Answer {
    Head { page: Page, settled: Settled, lanes: Vec<LaneId> },
    Behind { page: Page, settled: Settled, lane: LaneId },
    FellAsleep { producers: Vec<u64> },
    WokeUp,
    FlagSet,
}

/// Deliveries of a page that need not run: they have been settled before.
pub(super) type Settled = HashSet<(EventId, String)>;

pub(super) async fn ask(store: Arc<Store>, earlier: Arc<Earlier>, job: Job) -> Result<Answer, Error> {
    match job {
        Job::FallAsleep => {
            store.bell_set(true).await?;
            Ok(Answer::FellAsleep { producers: store.bell_producers().await? })
        }
        Job::WakeUp => {
            store.bell_set(false).await?;
            Ok(Answer::WokeUp)
        }
        Job::SetFlag { asleep } => {
            store.bell_set(asleep).await?;
            Ok(Answer::FlagSet)
        }
        Job::Read { read: Read::Head { cursor, limit, lanes }, handlers } => {
            let page = store.tail_head(&cursor, limit).await?;
            let settled =
                settled(&store, &page, &handlers, |xid, id| earlier.snapshot.sees(xid) || id <= earlier.last_id)
                    .await?;
            Ok(Answer::Head { page, settled, lanes })
        }
        Job::Read { read: Read::Behind { lane, cursor, head, limit }, handlers } => {
            let page = store.tail_behind(&cursor, &head, limit).await?;
            // A handler that returns to the configuration has settled more than its stored position says.
            let settled = settled(&store, &page, &handlers, |_, _| true).await?;
            Ok(Answer::Behind { page, settled, lane })
        }
    }
}

async fn settled(
    store: &Store,
    page: &Page,
    handlers: &[Arc<str>],
    may_be: impl Fn(u64, i64) -> bool,
) -> Result<Settled, Error> {
    let ids: Vec<i64> = page
        .events
        .iter()
        .map(|e| (e.xid, e.event.id.0))
        .filter(|&(xid, id)| may_be(xid, id))
        .map(|(_, id)| id)
        .collect();
    if ids.is_empty() {
        return Ok(Settled::new());
    }
    let handlers: Vec<&str> = handlers.iter().map(|handler| &**handler).collect();
    store.settled_among(&ids, &handlers).await
}
