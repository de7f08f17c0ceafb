//! What every part of the daemon shares.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::export::Tracer;
use super::health::Health;
use crate::config::{AlertConfig, DaemonConfig, DeliveryConfig, OnDeadKey, Record, ScheduleConfig, Start};
use crate::flow::{Graph, OnDeadStep};
use crate::handler::Handler;
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::outcome::{Backoff, RetryPolicy};
use crate::postgres::Target;
use crate::snapshot::Snapshot;
use crate::store::registry::Registration;
use crate::systemd::Watchdog;

/// The finished position of every handler, for the janitor's sweep.
/// `None` until the term has said it for the first time.
pub(super) type Positions = Option<Vec<(String, Snapshot)>>;

/// One handler as the daemon runs it.
#[derive(Clone)]
pub(super) struct HandlerSpec {
    pub(super) name: Arc<str>,
    pub(super) kind: &'static str,
    pub(super) delivery: DeliveryConfig,
    pub(super) part: Part,
    /// What it is called with, for the operator; no secrets.
    pub(super) calls: serde_json::Value,
    /// The host that it calls, with the port.
    pub(super) host: Option<Arc<str>>,
    pub(super) handler: Arc<dyn Handler>,
}

impl HandlerSpec {
    /// Whether it reads the log; a step of a flow does not.
    pub(super) fn reads(&self) -> bool {
        !matches!(self.part, Part::Step { .. })
    }

    /// The handlers whose rows say how far a delivery is: its own, and those of a flow's steps.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Arc<str>> {
        let steps = match &self.part {
            Part::Flow(flow) => flow.handlers.as_slice(),
            Part::Handler | Part::Step { .. } => &[],
        };
        std::iter::once(&self.name).chain(steps)
    }
}

/// What a handler has to do with flows.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// Nothing.
    Handler,
    /// It is one: what it begins are instances, and nothing is called.
    Flow(Arc<Flow>),
    /// It is a step of this one, or undoes a step.
    Step { flow: Arc<str> },
}

/// A flow as the daemon runs it.
#[derive(Debug, PartialEq)]
pub(super) struct Flow {
    pub(super) graph: Arc<Graph>,
    pub(super) on_dead_step: OnDeadStep,
    /// The handlers of the steps, in the order of the graph.
    pub(super) handlers: Vec<Arc<str>>,
}

/// The handlers of the configuration in force; watched, so that the newest counts however many came in between.
pub(super) type Handlers = watch::Receiver<Arc<[HandlerSpec]>>;

/// What every part of the daemon shares.
pub(super) struct Context {
    pub(super) target: Target,
    pub(super) daemon: DaemonConfig,
    pub(super) observer: Observer,
    pub(super) progress: Arc<Watchdog>,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) handlers: Handlers,
    pub(super) schedules: watch::Receiver<Arc<[ScheduleConfig]>>,
    pub(super) alerts: watch::Receiver<Arc<[AlertConfig]>>,
    /// A handler has become full, or is not any more: the bell's flag is to be set again.
    pub(super) flag: Notify,
    /// Who is told of attempts for their traces; `None`: nobody.
    pub(super) tracer: Option<Tracer>,
    /// Where callbacks are posted, a token appended; `None`: nowhere.
    pub(super) callback_url: Option<String>,
}

/// The handlers as `outbox.handler` keeps them.
pub(super) fn registrations(specs: &[HandlerSpec]) -> Vec<Registration> {
    let registration = |spec: &HandlerSpec| {
        let DeliveryConfig {
            topics,
            concurrency,
            timeout,
            max_timeout,
            rate,
            retry,
            poll,
            callback,
            ordered,
            coalesce,
            concurrency_per_key,
            batch,
            max_backlog,
            record,
            breaker,
            on_done,
            on_dead,
            start,
        } = &spec.delivery;
        let (flow, steps, on_dead_step) = match &spec.part {
            Part::Handler => (None, None, None),
            Part::Step { flow } => (Some(Arc::clone(flow)), None, None),
            Part::Flow(flow) => (None, Some(serde_json::json!(flow.graph.steps())), Some(flow.on_dead_step.as_str())),
        };
        Registration {
            name: Arc::clone(&spec.name),
            topics: topics.iter().map(ToString::to_string).collect(),
            kind: spec.kind,
            settings: serde_json::json!({
                "calls": spec.calls,
                "concurrency": concurrency,
                "timeout_seconds": timeout.as_secs_f64(),
                "max_timeout_seconds": max_timeout.unwrap_or(*timeout).as_secs_f64(),
                "rate": rate.map(|rate| rate.to_string()),
                "retry": policy(retry),
                "poll": poll.as_ref().map(|poll| serde_json::json!({
                    "base_seconds": poll.base.as_secs_f64(),
                    "max_seconds": poll.max.as_secs_f64(),
                    "timeout_seconds": poll.timeout.as_secs_f64(),
                })),
                "callback": callback,
                "batch": batch.map(|batch| serde_json::json!({
                    "max": batch.max,
                    "wait_seconds": batch.wait.as_secs_f64(),
                })),
                "max_backlog": max_backlog.map(|max| serde_json::json!({ "events": max.events, "refuses": max.refuses })),
                "record": if *record == Record::Start { "start" } else { "late" },
                "breaker": breaker,
            }),
            ordered: ordered.map(OnDeadKey::as_str),
            coalesce: *coalesce,
            concurrency_per_key: concurrency_per_key.and_then(|most| i32::try_from(most).ok()),
            on_done: on_done.clone(),
            on_dead: on_dead.clone(),
            flow,
            steps,
            on_dead_step,
            beginning: *start == Start::Beginning,
        }
    };
    specs.iter().map(registration).collect()
}

fn policy(retry: &RetryPolicy) -> serde_json::Value {
    let backoff = match &retry.backoff {
        Backoff::Exponential => serde_json::json!("exponential"),
        Backoff::Linear => serde_json::json!("linear"),
        Backoff::Fixed => serde_json::json!("fixed"),
        Backoff::List(pauses) => serde_json::json!(pauses.iter().map(Duration::as_secs_f64).collect::<Vec<_>>()),
    };
    serde_json::json!({
        "max_attempts": retry.max_attempts,
        "backoff": backoff,
        "base_seconds": retry.base.as_secs_f64(),
        "max_seconds": retry.max.as_secs_f64(),
        "concurrency": retry.concurrency,
        "per_second": retry.rate,
    })
}
