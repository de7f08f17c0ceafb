//! What is counted, in Prometheus' text format. Every [`Observation`] that can be counted is, here and once; what only
//! the term knows (how long something took, what runs now) it says to the handler's [`Series`].
//!
//! The series of a handler are there, at zero, from the moment it is in the configuration, and go when it leaves. No label
//! can have more values than there are handlers, outcomes and versions. What needs a question to the database is not here.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

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
    batch_deliveries: Histogram,
}

/// What every handler has.
struct OfHandlers {
    attempts: IntCounterVec,
    expired: IntCounterVec,
    refused: IntCounterVec,
    in_flight: IntGaugeVec,
    breaker_open: IntGaugeVec,
    paused: IntGaugeVec,
    run_seconds: HistogramVec,
    queue_seconds: HistogramVec,
}

/// The series of one handler.
pub struct Series {
    attempts: [IntCounter; OUTCOMES.len()],
    expired: IntCounter,
    refused: IntCounter,
    in_flight: IntGauge,
    breaker_open: IntGauge,
    paused: IntGauge,
    run_seconds: Histogram,
    queue_seconds: Histogram,
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
            Observation::Refused { handler, .. } => self.of(handler, |series| series.refused.inc()),
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
            batch_deliveries: register(registry, Histogram::with_opts(batches)?)?,
        })
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
            in_flight: gauge("outboxd_in_flight", "Attempts that run now.")?,
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
            refused: self.refused.with_label_values(&[name]),
            in_flight: self.in_flight.with_label_values(&[name]),
            breaker_open: self.breaker_open.with_label_values(&[name]),
            paused: self.paused.with_label_values(&[name]),
            run_seconds: self.run_seconds.with_label_values(&[name]),
            queue_seconds: self.queue_seconds.with_label_values(&[name]),
        }
    }

    /// The only error is that there is nothing to remove.
    fn remove(&self, name: &str) {
        for outcome in OUTCOMES {
            let _ = self.attempts.remove_label_values(&[name, outcome]);
        }
        for counters in [&self.expired, &self.refused] {
            let _ = counters.remove_label_values(&[name]);
        }
        for gauges in [&self.in_flight, &self.breaker_open, &self.paused] {
            let _ = gauges.remove_label_values(&[name]);
        }
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
    pub fn show(&self, running: usize, broken: bool, paused: bool) {
        self.in_flight.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.breaker_open.set(broken.into());
        self.paused.set(paused.into());
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
