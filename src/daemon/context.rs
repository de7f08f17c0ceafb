//! What every part of the daemon shares.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{DaemonConfig, DeliveryConfig, Start};
use crate::handler::Handler;
use crate::observe::Observer;
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
    /// What it is called with, for the operator; no secrets.
    pub(super) calls: serde_json::Value,
    pub(super) handler: Arc<dyn Handler>,
}

/// The handlers of the configuration in force; watched, so that the newest counts however many came in between.
pub(super) type Handlers = watch::Receiver<Arc<[HandlerSpec]>>;

/// What every part of the daemon shares.
pub(super) struct Context {
    pub(super) target: Target,
    pub(super) daemon: DaemonConfig,
    pub(super) observer: Observer,
    pub(super) progress: Watchdog,
    pub(super) handlers: Handlers,
}

/// The handlers as `outbox.handler` keeps them.
pub(super) fn registrations(specs: &[HandlerSpec]) -> Vec<Registration> {
    let registration = |spec: &HandlerSpec| {
        let DeliveryConfig { topics, concurrency, timeout, retry, start } = &spec.delivery;
        Registration {
            name: Arc::clone(&spec.name),
            topics: topics.iter().map(ToString::to_string).collect(),
            kind: spec.kind,
            settings: serde_json::json!({
                "calls": spec.calls,
                "concurrency": concurrency,
                "timeout_seconds": timeout.as_secs_f64(),
                "retry": {
                    "max_attempts": retry.max_attempts,
                    "base_seconds": retry.base.as_secs_f64(),
                    "max_seconds": retry.max.as_secs_f64(),
                },
            }),
            beginning: *start == Start::Beginning,
        }
    };
    specs.iter().map(registration).collect()
}
