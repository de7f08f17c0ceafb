//! What `/metrics` shows and only the database knows: asked when somebody scrapes, by the daemon that leads, once in five seconds at
//! most. An answer that does not come is no reason to keep Prometheus waiting.

use std::time::{Duration, Instant};

use deadpool_postgres::Pool;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::metrics::{Metrics, PoolUse, Stored};
use crate::store::gauges::gauges;

/// Between two questions: what several Prometheus servers ask costs as much as one.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Prometheus gives a scrape ten seconds.
const ANSWER_MAX: Duration = Duration::from_secs(2);

pub(super) struct Gauges {
    /// Sessions of the port.
    own: Pool,
    /// The pool of the SQL handlers, of which something is told.
    told: Pool,
    last: Mutex<Option<Answer>>,
}

struct Answer {
    at: Instant,
    stored: Option<(Vec<Stored>, i64)>,
}

impl Gauges {
    pub(super) fn new(own: Pool, told: Pool) -> Self {
        Self { own, told, last: Mutex::new(None) }
    }

    /// Brings the metrics up to date.
    pub(super) async fn refresh(&self, metrics: &Metrics) {
        let status = self.told.status();
        let pool = PoolUse {
            used: status.size.saturating_sub(status.available),
            idle: status.available,
            waiting: status.waiting,
        };
        if !metrics.leads() {
            metrics.show(None, pool);
            return;
        }
        // Whoever asks meanwhile waits for the same answer.
        let mut last = self.last.lock().await;
        if last.as_ref().is_none_or(|answer| answer.at.elapsed() >= ASK_EVERY) {
            *last = Some(Answer { at: Instant::now(), stored: timeout(ANSWER_MAX, self.ask()).await.ok().flatten() });
        }
        let stored = last.as_ref().and_then(|answer| answer.stored.as_ref());
        metrics.show(stored.map(|(stored, last_id)| (stored.as_slice(), *last_id)), pool);
    }

    async fn ask(&self) -> Option<(Vec<Stored>, i64)> {
        // That it could not be asked is shown: outboxd_database_read is 0.
        gauges(&self.own.get().await.ok()?).await.ok()
    }
}
