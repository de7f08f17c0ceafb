//! The janitor: partitions ahead, old checkpoints and keys away, and the sweep that compares the log with what is
//! settled; what is old goes on the way. It works beside the leader on a session of its own, which it keeps only while it works.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::context::{Context, Positions};
use super::retention::{Retention, lasting};
use crate::observe::Observation;
use crate::store::Store;

/// Between the first two rounds; doubled from round to round up to [`ROUND_EVERY`]. A lead often begins with a backlog, and
/// then a lock that partitions need may not be had at once.
const ROUND_AGAIN: Duration = Duration::from_secs(1);
/// Between two rounds later on. The partitions ahead hold what comes in 400 s at 10,000 events a second.
const ROUND_EVERY: Duration = Duration::from_mins(2);
/// Ids compared in one statement.
const SWEEP_IDS: i64 = 10_000;
/// Rounds in which the sweep goes over the whole log, when it has done so once.
const SWEEP_ROUNDS: u32 = 30;
/// Before that, a round sweeps for so long: partitions must be made meanwhile.
const FIRST_SWEEP_MAX: Duration = Duration::from_secs(30);
/// So many times as long as a statement of the sweep takes it rests: what it looks for is rare, and the others need the CPU.
const SWEEP_RESTS: u32 = 9;

/// What `trim_dedup`, `trim_consumed` and `trim_operation` forget in one statement.
const KEYS_TOGETHER: u64 = 10_000;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Works until it is dropped.
pub(super) async fn run(context: &Context, mut positions: watch::Receiver<Positions>) {
    let mut sweep = Sweep { next: 0, steps: 0, whole: None };
    let mut retention = Retention::new();
    let mut pause = ROUND_AGAIN;
    loop {
        let round = round(context, &mut positions, &mut sweep, &mut retention).await;
        if let Err(error) = round {
            context.observer.tell(&Observation::Hiccup { doing: "housekeeping", error: error.to_string() });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ROUND_EVERY);
    }
}

async fn round(
    context: &Context,
    positions: &mut watch::Receiver<Positions>,
    sweep: &mut Sweep,
    retention: &mut Retention,
) -> Result<(), Failed> {
    let store = Store::new(context.target.connect("janitor").await?);
    store.add_partitions(lasting(context.daemon.retention)).await?;
    store.trim_position().await?;
    while store.trim_dedup().await? == KEYS_TOGETHER {}
    while store.trim_consumed().await? == KEYS_TOGETHER {}
    while store.trim_operation(context.daemon.retention).await? == KEYS_TOGETHER {}
    retention.run(context, &store).await?;
    // Nothing can be compared before the leader has said how far each handler is.
    positions.wait_for(Option::is_some).await?;
    sweep.run(context, &store, positions, retention).await
}

/// Where the sweep is.
struct Sweep {
    /// The next id to compare.
    next: i64,
    /// Statements since it began at the lowest id.
    steps: u32,
    /// Statements that the whole log took the last time; `None`: it has not gone over it yet.
    whole: Option<u32>,
}

impl Sweep {
    async fn run(
        &mut self,
        context: &Context,
        store: &Store,
        positions: &watch::Receiver<Positions>,
        retention: &Retention,
    ) -> Result<(), Failed> {
        let started = Instant::now();
        let mut left = self.whole.map_or(u32::MAX, |whole| whole / SWEEP_ROUNDS + 1);
        while left > 0 && (self.whole.is_some() || started.elapsed() < FIRST_SWEEP_MAX) {
            let Some(from) = store.next_in_log(self.next).await? else {
                *self = Self { next: 0, steps: 0, whole: Some(self.steps) };
                break;
            };
            let to = from.saturating_add(SWEEP_IDS);
            let finished = positions.borrow().clone().unwrap_or_default();
            let began = Instant::now();
            let deliveries = store.sweep(from, to, &finished).await?;
            if deliveries > 0 {
                context.observer.tell(&Observation::SweepFound { deliveries });
                store.ring().await?;
            }
            tokio::time::sleep(began.elapsed() * SWEEP_RESTS).await;
            retention.trim(context, store, from, to).await?;
            self.next = to;
            self.steps += 1;
            left -= 1;
        }
        Ok(())
    }
}
