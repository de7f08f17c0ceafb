//! What is counted, in Prometheus' text format. Every [`Observation`] that can be counted is, here and once; what only
//! the term knows (how long something took, what runs now) it says to the handler's [`Series`].
//!
//! The series of a handler are there, at zero, from the moment it is in the configuration, and go when it leaves. No label
//! can have more values than there are handlers, states, outcomes and versions. What only the database knows is asked when somebody
//! scrapes ([`crate::store::gauges`]), and shown by [`Metrics::show`].

mod standing;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use self::standing::{OPEN_STATES, PoolUse, Shown, Standing, Stored};
use crate::observe::Observation;

/// What the answer's `Content-Type` has to be.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How an attempt can end: the words of `outbox.attempt.outcome`, but `lost`, which only a later daemon can know of.
pub const OUTCOMES: [&str; 8] = ["done", "retry", "unreachable", "snooze", "wait", "paused", "dead", "cancelled"];

/// From a function that is quick to a job of an hour.
const RUN_SECONDS: [f64; 14] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 600.0, 3600.0];
/// From the bell's way to a backlog of a day.
const QUEUE_SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0, 86400.0];
/// Up to the largest batch.
const BATCH_DELIVERIES: [f64; 7] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0];

const HANDLER: &str = "handler";

/// Everything that is counted of one daemon.
pub struct Metrics {
    registry: Registry,
    daemon: OfDaemon,
    handlers: OfHandlers,
    /// The series of the handlers in the configuration, looked up once for each observation.
    series: RwLock<HashMap<Arc<str>, Arc<Series>>>,
}

/// What belongs to no handler.
struct OfDaemon {
    leader: IntGauge,
    standby: IntGauge,
    terms: IntCounter,
    listener_up: IntGauge,
    notifications_heard: IntCounter,
    poll_found: IntCounter,
    sweep_found: IntCounter,
    events_read: IntCounter,
    ticks: IntCounter,
    spans_exported: IntCounter,
    spans_dropped: IntCounter,
    batch_deliveries: Histogram,
    database_read: IntGauge,
    pool: IntGaugeVec,
    pool_waiting: IntGauge,
}

/// What every handler has.
struct OfHandlers {
    attempts: IntCounterVec,
    expired: IntCounterVec,
    merged: IntCounterVec,
    refused: IntCounterVec,
    callbacks: IntCounterVec,
    in_flight: IntGaugeVec,
    queued: IntGaugeVec,
    unread: IntGaugeVec,
    behind: IntGaugeVec,
    open: IntGaugeVec,
    oldest_seconds: GaugeVec,
    breaker_open: IntGaugeVec,
    paused: IntGaugeVec,
    run_seconds: HistogramVec,
    queue_seconds: HistogramVec,
}

/// The series of one handler.
pub struct Series {
    attempts: [IntCounter; OUTCOMES.len()],
    expired: IntCounter,
    merged: IntCounter,
    refused: IntCounter,
    callbacks: IntCounter,
    in_flight: IntGauge,
    queued: IntGauge,
    unread: IntGauge,
    behind: IntGauge,
    open: [IntGauge; OPEN_STATES.len()],
    oldest_seconds: Gauge,
    breaker_open: IntGauge,
    paused: IntGauge,
    run_seconds: Histogram,
    queue_seconds: Histogram,
    /// As in [`Shown`]; below 0: none.
    oldest: AtomicI64,
    read_to: AtomicI64,
}

impl Metrics {
    /// # Errors
    /// If two of the names below are the same, or one is no name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let daemon = OfDaemon::new(&registry)?;
        let handlers = OfHandlers::new(&registry)?;
        let build = IntGauge::with_opts(
            Opts::new("outboxd_build_info", "1. The label is the version.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build.set(1);
        register(&registry, build)?;
        Ok(Self { registry, daemon, handlers, series: RwLock::default() })
    }

    /// The text for Prometheus.
    ///
    /// # Errors
    /// If a series has no value, which a counter and a gauge always have.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Whether this daemon dispatches: then it shows what the database says.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.daemon.leader.get() == 1
    }

    /// Takes over what only the database knows; `None`: it was not asked, or has not answered. Ages are as of now.
    pub fn show(&self, stored: Option<(&[Stored], i64)>, pool: PoolUse) {
        self.daemon.show(stored.is_some(), pool);
        self.show_handlers(stored);
    }

    /// The same of the handlers only.
    pub fn show_handlers(&self, stored: Option<(&[Stored], i64)>) {
        let now = Timestamp::now().as_microsecond();
        let (all, last_id) = stored.unwrap_or_default();
        for (name, series) in self.series.read().unwrap_or_else(PoisonError::into_inner).iter() {
            series.show_stored(all.iter().find(|stored| *stored.handler == **name), last_id, now);
        }
    }

    /// How the handlers stand, as was shown last.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        series.iter().map(|(name, series)| series.standing(name)).collect()
    }

    /// Whether this daemon is known to hear the bell.
    #[must_use]
    pub fn hears(&self) -> bool {
        self.daemon.listener_up.get() == 1
    }

    /// These are the handlers of the configuration: those that are new begin at zero, those that left are gone.
    pub fn keep(&self, names: &[Arc<str>]) {
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        series.retain(|known, _| {
            let stays = names.contains(known);
            if !stays {
                self.handlers.remove(known);
            }
            stays
        });
        for name in names {
            series.entry(Arc::clone(name)).or_insert_with(|| Arc::new(self.handlers.of(name)));
        }
    }

    /// The series of a handler, unless it has left the configuration.
    #[must_use]
    pub fn handler(&self, name: &str) -> Option<Arc<Series>> {
        self.series.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The receiver of traces has taken so many spans.
    pub fn spans_exported(&self, spans: usize) {
        self.daemon.spans_exported.inc_by(spans as u64);
    }

    /// So many spans go nowhere.
    pub fn spans_dropped(&self, spans: usize) {
        self.daemon.spans_dropped.inc_by(spans as u64);
    }

    /// Counts what happened.
    pub fn count(&self, observation: &Observation) {
        match observation {
            Observation::Done { handler, .. } => self.ended(handler, "done"),
            Observation::Retrying { handler, outcome, .. } => self.ended(handler, outcome),
            Observation::Snoozed { handler, .. } => self.ended(handler, "snooze"),
            Observation::Waiting { handler, .. } => self.ended(handler, "wait"),
            Observation::Dead { handler, .. } => self.ended(handler, "dead"),
            Observation::Cancelled { handler, .. } => self.ended(handler, "cancelled"),
            Observation::Expired { handler, .. } => self.of(handler, |series| series.expired.inc()),
            Observation::Merged { handler, .. } => self.of(handler, |series| series.merged.inc()),
            Observation::Refused { handler, .. } => self.of(handler, |series| series.refused.inc()),
            Observation::Answered { handler, .. } => self.of(handler, |series| series.callbacks.inc()),
            other => self.daemon.count(other),
        }
    }

    fn ended(&self, handler: &str, outcome: &str) {
        let Some(index) = OUTCOMES.iter().position(|known| *known == outcome) else { return };
        self.of(handler, |series| series.attempts[index].inc());
    }

    /// A handler that left the configuration may still end what runs; that is not counted.
    fn of(&self, handler: &str, count: impl Fn(&Series)) {
        if let Some(series) = self.series.read().unwrap_or_else(PoisonError::into_inner).get(handler) {
            count(series);
        }
    }
}

impl OfDaemon {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help)?);
        let batches = HistogramOpts::new("outboxd_batch_deliveries", "Deliveries whose states were written together.")
            .buckets(BATCH_DELIVERIES.to_vec());
        Ok(Self {
            leader: gauge("outboxd_leader", "1 while this daemon dispatches.")?,
            standby: gauge("outboxd_standby", "1 while this daemon waits for the place of another one that leads.")?,
            terms: counter("outboxd_terms_total", "Times this daemon has begun to dispatch.")?,
            listener_up: gauge(
                "outboxd_listener_up",
                "1 while this daemon dispatches and its listening session is known to hear the bell.",
            )?,
            notifications_heard: counter(
                "outboxd_notifications_heard_total",
                "Times the bell was heard; several notifications at the same time are one.",
            )?,
            poll_found: counter("outboxd_poll_found_total", "Polls that found events nobody had rung for.")?,
            sweep_found: counter("outboxd_sweep_found_total", "Deliveries that only the sweep found.")?,
            events_read: counter(
                "outboxd_events_read_total",
                "Events read from the log; a handler that fell behind reads them once more.",
            )?,
            ticks: counter("outboxd_ticks_total", "Events of schedules that this daemon has inserted.")?,
            spans_exported: counter("outboxd_spans_exported_total", "Spans that the receiver of traces has taken.")?,
            spans_dropped: counter(
                "outboxd_spans_dropped_total",
                "Spans that were dropped because the receiver of traces did not take them in time, or at all.",
            )?,
            batch_deliveries: register(registry, Histogram::with_opts(batches)?)?,
            database_read: gauge(
                "outboxd_database_read",
                "1 if outboxd_open_deliveries, outboxd_unread_events and what is due in outboxd_oldest_seconds are as of this scrape.",
            )?,
            pool: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("outboxd_pool_connections", "Connections of the pool for SQL handlers."),
                    &["state"],
                )?,
            )?,
            pool_waiting: gauge("outboxd_pool_waiting", "Attempts of SQL handlers that wait for a connection.")?,
        })
    }

    fn show(&self, read: bool, pool: PoolUse) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.database_read.set(read.into());
        self.pool.with_label_values(&["used"]).set(gauge(pool.used));
        self.pool.with_label_values(&["idle"]).set(gauge(pool.idle));
        self.pool_waiting.set(gauge(pool.waiting));
    }

    fn count(&self, observation: &Observation) {
        match observation {
            Observation::Leading => {
                self.terms.inc();
                self.leader.set(1);
                self.standby.set(0);
            }
            Observation::StandingBy { .. } => self.standby.set(1),
            Observation::TermEnded { .. } | Observation::Drained { .. } => {
                for gauge in [&self.leader, &self.standby, &self.listener_up] {
                    gauge.set(0);
                }
            }
            Observation::Woken => {
                self.listener_up.set(1);
                self.notifications_heard.inc();
            }
            Observation::PollFound { .. } => self.poll_found.inc(),
            Observation::SweepFound { deliveries } => {
                self.sweep_found.inc_by(u64::try_from(*deliveries).unwrap_or_default());
            }
            Observation::Ticked { .. } => self.ticks.inc(),
            Observation::PageRead { events } => self.events_read.inc_by(*events as u64),
            #[expect(clippy::cast_precision_loss, reason = "a batch has a thousand deliveries at most")]
            Observation::Written { deliveries } => self.batch_deliveries.observe(*deliveries as f64),
            _ => {}
        }
    }
}

impl OfHandlers {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauge = |name: &str, help: &str| register(registry, IntGaugeVec::new(Opts::new(name, help), &[HANDLER])?);
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(registry, HistogramVec::new(opts, &[HANDLER])?)
        };
        Ok(Self {
            attempts: counter("outboxd_attempts_total", "Attempts that ended, by how.", &[HANDLER, "outcome"])?,
            expired: counter("outboxd_expired_total", "Deliveries that expired before they ran.", &[HANDLER])?,
            refused: counter(
                "outboxd_refused_total",
                "Outcomes not written because somebody else had finished the delivery.",
                &[HANDLER],
            )?,
            merged: counter(
                "outboxd_merged_total",
                "Deliveries that were done because a later one of their key does their work.",
                &[HANDLER],
            )?,
            callbacks: counter("outboxd_callbacks_total", "Callbacks whose answer counted.", &[HANDLER])?,
            in_flight: gauge("outboxd_in_flight", "Attempts that run now.")?,
            queued: gauge("outboxd_queued", "Deliveries that were read and have not begun.")?,
            unread: gauge(
                "outboxd_unread_events",
                "About how many events of the log, of any topic, have not been read for the handler.",
            )?,
            behind: gauge(
                "outboxd_position_lag_transactions",
                "Transactions that were read and that the handler's position has not passed.",
            )?,
            open: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("outboxd_open_deliveries", "Rows in outbox.open by state, counted up to 10000."),
                    &[HANDLER, "state"],
                )?,
            )?,
            oldest_seconds: register(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "outboxd_oldest_seconds",
                        "For how long the oldest delivery that could begin has waited: since its event was created, or since it was due.",
                    ),
                    &[HANDLER],
                )?,
            )?,
            breaker_open: gauge("outboxd_breaker_open", "1 while nothing but probes is sent to the handler's target.")?,
            paused: gauge("outboxd_paused", "1 while nothing begins for the handler because it is paused.")?,
            run_seconds: histogram("outboxd_run_seconds", "How long attempts ran.", &RUN_SECONDS)?,
            queue_seconds: histogram(
                "outboxd_queue_seconds",
                "From the creation of an event, by PostgreSQL's clock, to its first attempt, by the daemon's.",
                &QUEUE_SECONDS,
            )?,
        })
    }

    fn of(&self, name: &str) -> Series {
        Series {
            attempts: OUTCOMES.map(|outcome| self.attempts.with_label_values(&[name, outcome])),
            expired: self.expired.with_label_values(&[name]),
            merged: self.merged.with_label_values(&[name]),
            refused: self.refused.with_label_values(&[name]),
            callbacks: self.callbacks.with_label_values(&[name]),
            in_flight: self.in_flight.with_label_values(&[name]),
            queued: self.queued.with_label_values(&[name]),
            unread: self.unread.with_label_values(&[name]),
            behind: self.behind.with_label_values(&[name]),
            open: OPEN_STATES.map(|state| self.open.with_label_values(&[name, state])),
            oldest_seconds: self.oldest_seconds.with_label_values(&[name]),
            breaker_open: self.breaker_open.with_label_values(&[name]),
            paused: self.paused.with_label_values(&[name]),
            run_seconds: self.run_seconds.with_label_values(&[name]),
            queue_seconds: self.queue_seconds.with_label_values(&[name]),
            oldest: AtomicI64::new(-1),
            read_to: AtomicI64::new(-1),
        }
    }

    /// The only error is that there is nothing to remove.
    fn remove(&self, name: &str) {
        for outcome in OUTCOMES {
            let _ = self.attempts.remove_label_values(&[name, outcome]);
        }
        for state in OPEN_STATES {
            let _ = self.open.remove_label_values(&[name, state]);
        }
        for counters in [&self.expired, &self.merged, &self.refused, &self.callbacks] {
            let _ = counters.remove_label_values(&[name]);
        }
        for gauges in [&self.in_flight, &self.queued, &self.unread, &self.behind, &self.breaker_open, &self.paused] {
            let _ = gauges.remove_label_values(&[name]);
        }
        let _ = self.oldest_seconds.remove_label_values(&[name]);
        for histograms in [&self.run_seconds, &self.queue_seconds] {
            let _ = histograms.remove_label_values(&[name]);
        }
    }
}

impl Series {
    /// A first attempt has begun, so long after its event was created. The clocks are two, so it may seem to be before.
    pub fn began(&self, queued: Duration) {
        self.queue_seconds.observe(queued.as_secs_f64());
    }

    /// An attempt has ended.
    pub fn ran(&self, time: Duration) {
        self.run_seconds.observe(time.as_secs_f64());
    }

    /// What is so now.
    pub fn show(&self, shown: &Shown) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.in_flight.set(gauge(shown.running));
        self.queued.set(gauge(shown.queued));
        self.behind.set(i64::try_from(shown.behind).unwrap_or(i64::MAX));
        self.breaker_open.set(shown.broken.into());
        self.paused.set(shown.paused.into());
        self.oldest.store(shown.oldest.unwrap_or(-1), Ordering::Relaxed);
        self.read_to.store(shown.read_to.unwrap_or(-1), Ordering::Relaxed);
    }

    fn standing(&self, handler: &Arc<str>) -> Standing {
        let open = |state: &str| {
            let index = OPEN_STATES.iter().position(|known| *known == state);
            index.map_or(0, |index| self.open[index].get())
        };
        #[expect(clippy::cast_precision_loss, reason = "they are compared with small numbers")]
        let float = |count: i64| count as f64;
        Standing {
            handler: Arc::clone(handler),
            dead: float(open("dead")),
            backlog: float(self.queued.get() + self.unread.get() + open("retrying")),
            oldest: self.oldest_seconds.get(),
            broken: self.breaker_open.get() == 1,
        }
    }

    /// What the database says, and the ages that come of it and of what was shown last.
    fn show_stored(&self, stored: Option<&Stored>, last_id: i64, now: i64) {
        for (at, gauge) in self.open.iter().enumerate() {
            gauge.set(stored.map_or(0, |stored| stored.open[at]));
        }
        let read_to = self.read_to.load(Ordering::Relaxed);
        self.unread.set(if read_to < 0 { 0 } else { (last_id - read_to).max(0) });
        let oldest = self.oldest.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "it is an age")]
        let waited = if oldest < 0 { 0.0 } else { (now - oldest).max(0) as f64 / 1e6 };
        self.oldest_seconds.set(stored.and_then(|stored| stored.overdue).unwrap_or(0.0).max(waited));
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
