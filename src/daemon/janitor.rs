//! The janitor: partitions ahead, old checkpoints and keys away, and the sweep that compares the log with what is
//! settled. It works beside the leader on a session of its own, which it keeps only while it works.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::context::{Context, Positions};
use crate::observe::Observation;
use crate::store::Store;

/// Between the first two rounds; doubled from round to round up to [`ROUND_EVERY`]. A lead often begins with a backlog, and
/// then a lock that partitions need may not be had at once.
const ROUND_AGAIN: Duration = Duration::from_secs(1);
/// Between two rounds later on.
const ROUND_EVERY: Duration = Duration::from_mins(1);
/// Ids compared in one statement.
const SWEEP_IDS: i64 = 10_000;
/// Rounds in which the sweep goes over the whole log, after the first round, which does it at once.
const SWEEP_ROUNDS: i64 = 60;
/// So many times as long as a statement of the sweep takes it rests: what it looks for is rare, and the others need the CPU.
const SWEEP_RESTS: u32 = 9;

/// Keys that `trim_dedup` and `trim_consumed` forget in one statement.
const KEYS_TOGETHER: u64 = 10_000;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Works until it is dropped.
pub(super) async fn run(context: &Context, mut positions: watch::Receiver<Positions>) {
    let mut sweep = Sweep { next: None, statements: i64::MAX };
    let mut pause = ROUND_AGAIN;
    loop {
        let round = round(context, &mut positions, &mut sweep).await;
        if let Err(error) = round {
            context.observer.tell(&Observation::Hiccup { doing: "housekeeping", error: error.to_string() });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ROUND_EVERY);
    }
}

async fn round(context: &Context, positions: &mut watch::Receiver<Positions>, sweep: &mut Sweep) -> Result<(), Failed> {
    let store = Store::new(context.target.connect("janitor").await?);
    store.add_partitions().await?;
    store.trim_position().await?;
    while store.trim_dedup().await? == KEYS_TOGETHER {}
    while store.trim_consumed().await? == KEYS_TOGETHER {}
    // Nothing can be compared before the leader has said how far each handler is.
    positions.wait_for(Option::is_some).await?;
    sweep.run(context, &store, positions).await
}

/// Where the sweep is.
struct Sweep {
    /// The next id to compare; `None`: begin at the lowest.
    next: Option<i64>,
    /// Of the next round.
    statements: i64,
}

impl Sweep {
    async fn run(
        &mut self,
        context: &Context,
        store: &Store,
        positions: &watch::Receiver<Positions>,
    ) -> Result<(), Failed> {
        let Some((lowest, highest)) = store.log_bounds().await? else { return Ok(()) };
        let later = (highest - lowest) / SWEEP_IDS / SWEEP_ROUNDS + 1;
        let statements = std::mem::replace(&mut self.statements, later);
        for _ in 0..statements {
            let from = self.next.unwrap_or(lowest).max(lowest);
            let to = from.saturating_add(SWEEP_IDS);
            let finished = positions.borrow().clone().unwrap_or_default();
            let began = Instant::now();
            let deliveries = store.sweep(from, to, &finished).await?;
            if deliveries > 0 {
                context.observer.tell(&Observation::SweepFound { deliveries });
                store.ring().await?;
            }
            self.next = (to <= highest).then_some(to);
            if self.next.is_none() {
                break;
            }
            tokio::time::sleep(began.elapsed() * SWEEP_RESTS).await;
        }
        Ok(())
    }
}
