//! Retention: what has finished goes when it is old, partition by partition, and who keeps it is told of.
//!
//! Whether something may go is decided in PostgreSQL, in the transaction in which it goes (`migrations/V5__retention.sql`).
//! Here is only when to ask, and what is remembered so that a large partition is not read in every round.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::context::Context;
use crate::config::duration;
use crate::observe::Observation;
use crate::store::retention::{Checked, Holding};
use crate::store::{Error, Store};

/// One partition is to last so much of the retention: what goes whole goes at most so much later than it could.
const PARTITIONS: u32 = 8;
/// Without retention, partitions are made as for this one.
const RETENTION_OFF: Duration = Duration::from_hours(30 * 24);
/// What has waited for its partition for a quarter of the retention goes row by row.
const OVERDUE: f64 = 1.25;
/// A partition with a pending delivery is read again after so long; the sweep finds that delivery sooner.
const PENDING_AGAIN: Duration = Duration::from_hours(1);
/// An Instant cannot lie as far ahead as a time in an event.
const YOUNG_MAX: Duration = Duration::from_hours(24);
/// A try to drop partitions that finds somebody in the way makes producers wait for 50 ms; the next one comes after so long.
const DROP_AGAIN: Duration = Duration::from_mins(10);
/// A handler that runs may be behind for so long before it is told.
const BEHIND_MAX: Duration = Duration::from_hours(1);
/// Who keeps the log is told of so often.
const TELL_EVERY: Duration = Duration::from_hours(24);

/// What is known of partitions and handlers from round to round.
pub(super) struct Retention {
    partitions: HashMap<i64, Known>,
    drop_at: Instant,
    holding: HashMap<String, Held>,
}

/// What a look into a partition, by its first id, has shown.
enum Known {
    NotBefore(Instant),
    /// Everything in it was finished and old, in this snapshot.
    Finished(String),
}

/// A handler keeps old events: since when this daemon knows, and when that was told.
struct Held {
    since: Instant,
    told: Option<Instant>,
}

/// How long a partition is to last.
pub(super) fn lasting(retention: Option<Duration>) -> Duration {
    retention.unwrap_or(RETENTION_OFF) / PARTITIONS
}

impl Retention {
    pub(super) fn new() -> Self {
        Self { partitions: HashMap::new(), drop_at: Instant::now(), holding: HashMap::new() }
    }

    /// One round: what may go as a whole goes.
    pub(super) async fn run(&mut self, context: &Context, store: &Store) -> Result<(), Error> {
        let Some(retention) = context.daemon.retention else { return Ok(()) };
        let old = store.old_partitions(retention).await?;
        self.partitions.retain(|first_id, _| old.iter().any(|partition| partition.first_id == *first_id));
        for partition in old {
            let known = match self.partitions.remove(&partition.first_id) {
                Some(Known::NotBefore(at)) if Instant::now() < at => Known::NotBefore(at),
                Some(Known::Finished(snapshot)) => Known::Finished(snapshot),
                _ => match store.check_partition(partition, retention).await? {
                    Checked::Finished { snapshot } => Known::Finished(snapshot),
                    Checked::Young { wait } => Known::NotBefore(Instant::now() + wait.min(YOUNG_MAX)),
                    Checked::Pending => Known::NotBefore(Instant::now() + PENDING_AGAIN),
                },
            };
            if let Known::Finished(snapshot) = &known {
                match store.empty_partition(partition, snapshot).await? {
                    Some(true) => {
                        let (from, below) = (partition.first_id, partition.next_id);
                        context.observer.tell(&Observation::Retired { from, below });
                        continue;
                    }
                    // Something has come since; the next round reads it again.
                    Some(false) => continue,
                    None => {}
                }
            }
            self.partitions.insert(partition.first_id, known);
        }
        if Instant::now() >= self.drop_at && store.drop_partitions().await?.is_none() {
            self.drop_at = Instant::now() + DROP_AGAIN;
        }
        let holding = store.held_back(retention.mul_f64(OVERDUE)).await?;
        for text in self.notices(&holding, retention, Instant::now()) {
            context.observer.tell(&Observation::Notice { text });
        }
        Ok(())
    }

    /// What is overdue among these ids goes row by row: half of the time at most, as the sweep.
    pub(super) async fn trim(&self, context: &Context, store: &Store, from: i64, to: i64) -> Result<(), Error> {
        let Some(retention) = context.daemon.retention else { return Ok(()) };
        loop {
            let began = Instant::now();
            let trimmed = store.trim_log(from, to, retention.mul_f64(OVERDUE)).await?;
            tokio::time::sleep(began.elapsed()).await;
            if trimmed.is_none_or(|rows| rows == 0) {
                return Ok(());
            }
        }
    }

    /// What to tell about the handlers for whom old events are kept.
    fn notices(&mut self, holding: &[Holding], retention: Duration, now: Instant) -> Vec<String> {
        self.holding.retain(|handler, _| holding.iter().any(|held| held.handler == *handler));
        let mut texts = Vec::new();
        for held in holding {
            let known = self.holding.entry(held.handler.clone()).or_insert(Held { since: now, told: None });
            let stands = held.absent || held.paused || now.duration_since(known.since) >= BEHIND_MAX;
            if stands && known.told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY) {
                known.told = Some(now);
                texts.push(text(held, retention));
            }
        }
        texts
    }
}

fn text(held: &Holding, retention: Duration) -> String {
    let Holding { handler, absent, paused, age } = held;
    let why = if *absent {
        format!(
            "it is not in the configuration; put it back, or give its deliveries up with `outboxd forget {handler}`"
        )
    } else if *paused {
        format!("it is paused; `outboxd resume {handler}` goes on")
    } else {
        "it is behind; `outboxd status` shows how far".to_owned()
    };
    let (age, retention) = (duration::format(Duration::from_secs(age.as_secs())), duration::format(retention));
    format!(
        "handler {handler} has not finished an event that is {age} old, so the log is kept for longer than `retention` ({retention}): {why}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn holding(absent: bool, paused: bool) -> Holding {
        Holding { handler: "mail".to_owned(), absent, paused, age: 12 * DAY }
    }

    #[test]
    fn who_keeps_the_log_is_told_of_once_a_day_with_the_remedy() {
        let (mut retention, now) = (Retention::new(), Instant::now());
        let mut tell = |held: &[Holding], after| retention.notices(held, 7 * DAY, now + after);
        let paused = [holding(false, true)];
        assert_eq!(
            tell(&paused, Duration::ZERO),
            ["handler mail has not finished an event that is 12d old, so the log is kept for longer than `retention` \
              (7d): it is paused; `outboxd resume mail` goes on"]
        );
        assert!(tell(&paused, DAY / 2).is_empty());
        assert!(tell(&paused, DAY)[0].contains("outboxd resume mail"));
        assert!(tell(&[], DAY).is_empty());
        assert!(tell(&[holding(true, true)], DAY)[0].contains("outboxd forget mail"), "it has stopped and begun again");
    }

    #[test]
    fn a_handler_that_runs_may_take_an_hour_to_catch_up() {
        let (mut retention, now) = (Retention::new(), Instant::now());
        let behind = [holding(false, false)];
        assert!(retention.notices(&behind, 7 * DAY, now).is_empty());
        assert!(retention.notices(&behind, 7 * DAY, now + BEHIND_MAX / 2).is_empty());
        assert!(retention.notices(&behind, 7 * DAY, now + BEHIND_MAX)[0].contains("outboxd status"));
    }
}
