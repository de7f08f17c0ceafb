//! From what is configured, or written in Rust, to the handlers that run. A flow becomes a handler for itself, one for each step and
//! one for each compensation.

use std::future::Future;
use std::sync::Arc;

use super::context::{self, HandlerSpec, Part};
use super::error::DaemonError;
use crate::config::{Config, DeliveryConfig, FlowConfig, Kind, Start};
use crate::event::Attempt;
use crate::flow::{Graph, OnDeadStep, Step, Undo, compensation_handler, step_handler};
use crate::handler::command::CommandHandler;
use crate::handler::http::{Clients, HttpHandler};
use crate::handler::native::{IntoOutcome, Native};
use crate::handler::sql::SqlHandler;
use crate::handler::{Handler, OutcomeFuture};
use crate::outcome::{Failure, Outcome};
use crate::topic::Pattern;

/// What configured handlers share.
pub(super) struct Called<'a> {
    http: Clients,
    pool: &'a deadpool_postgres::Pool,
}

impl<'a> Called<'a> {
    pub(super) fn new(http: &reqwest::Client, pool: &'a deadpool_postgres::Pool) -> Self {
        Self { http: Clients::new(http.clone()), pool }
    }
}

/// The word for the kind of a flow.
const FLOW: &str = "flow";

pub(super) fn names(specs: &[HandlerSpec]) -> Vec<Arc<str>> {
    specs.iter().map(|spec| Arc::clone(&spec.name)).collect()
}

pub(super) fn native(name: impl Into<Arc<str>>, delivery: DeliveryConfig, handler: Arc<dyn Handler>) -> HandlerSpec {
    let (name, kind, part) = (name.into(), Kind::Native.as_str(), Part::Handler);
    HandlerSpec { name, kind, delivery, part, calls: serde_json::json!({}), host: None, handler }
}

/// The handlers of a configuration and those written in Rust, in the order of their names.
pub(super) fn specs(
    config: &Config,
    native: &[HandlerSpec],
    called: &Called<'_>,
) -> Result<Arc<[HandlerSpec]>, DaemonError> {
    let mut specs = native.to_vec();
    for handler in &config.handlers {
        let name = Arc::clone(&handler.name);
        specs.extend(configured(name, Part::Handler, &handler.kind, &handler.delivery, called)?);
    }
    for flow in &config.flows {
        specs.extend(flow_specs(flow, called)?);
    }
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = specs.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(DaemonError::SameName(pair[0].name.to_string()));
    }
    Ok(specs.into())
}

/// What a handler of a configuration calls; none that is written in Rust.
fn configured(
    name: Arc<str>,
    part: Part,
    kind: &Kind,
    delivery: &DeliveryConfig,
    called: &Called<'_>,
) -> Result<Option<HandlerSpec>, DaemonError> {
    let (calls, handler): (_, Arc<dyn Handler>) = match kind {
        Kind::Http(kind) => {
            let mut calls = serde_json::json!({ "url": kind.url.shown() });
            if !kind.allow.is_empty() {
                calls["allow"] = kind.allow.iter().map(ToString::to_string).collect();
            }
            (calls, Arc::new(HttpHandler::new(kind, &called.http).map_err(DaemonError::Http)?))
        }
        Kind::Command(kind) => {
            (serde_json::json!({ "program": kind.argv.first() }), Arc::new(CommandHandler::new(kind)))
        }
        Kind::Sql(kind) => {
            let function = format!("{}.{}", kind.schema, kind.function);
            (
                serde_json::json!({ "function": function }),
                Arc::new(SqlHandler::new(kind, delivery, called.pool.clone())),
            )
        }
        Kind::Native => return Ok(None),
    };
    let host = match kind {
        // What one event's host does says nothing about another's.
        Kind::Http(kind) => kind.url.host().map(Into::into),
        _ => None,
    };
    Ok(Some(HandlerSpec { name, kind: kind.as_str(), delivery: delivery.clone(), part, calls, host, handler }))
}

fn flow_specs(flow: &FlowConfig, called: &Called<'_>) -> Result<Vec<HandlerSpec>, DaemonError> {
    let FlowConfig { name, delivery, on_dead_step, graph, steps } = flow;
    let mut specs = vec![flow_spec(name, delivery.clone(), *on_dead_step, Arc::clone(graph))];
    let part = || Part::Step { flow: Arc::clone(name) };
    for step in steps {
        let handler = step_handler(name, &step.name);
        specs.extend(configured(handler, part(), &step.kind, &step.delivery, called)?);
        if let Some(undo) = &step.compensate {
            let handler = compensation_handler(name, &step.name);
            specs.extend(configured(handler, part(), &undo.kind, &undo.delivery, called)?);
        }
    }
    Ok(specs)
}

fn flow_spec(name: &Arc<str>, delivery: DeliveryConfig, on_dead_step: OnDeadStep, graph: Arc<Graph>) -> HandlerSpec {
    let handlers = graph.steps().iter().map(|step| step_handler(name, &step.name)).collect();
    HandlerSpec {
        name: Arc::clone(name),
        kind: FLOW,
        delivery,
        calls: serde_json::json!({ "steps": graph.steps().iter().map(|step| &*step.name).collect::<Vec<_>>() }),
        part: Part::Flow(Arc::new(context::Flow { graph, on_dead_step, handlers })),
        host: None,
        handler: Arc::new(Uncalled),
    }
}

/// A flow calls nothing itself.
struct Uncalled;

impl Handler for Uncalled {
    fn run<'a>(&'a self, _: &'a Attempt) -> OutcomeFuture<'a> {
        Box::pin(async { Outcome::Dead { failure: Failure::new("a flow is not called") } })
    }
}

/// A flow whose steps are written in Rust, for [`DaemonBuilder::flow`](super::DaemonBuilder::flow). In a configuration it is a
/// `[flow.NAME]` table.
///
/// ```
/// use outboxd::{Attempt, Flow, Outcome};
///
/// let flow = Flow::new("order", ["order.placed"])
///     .step("stock", &[], async |_: Attempt| Outcome::done_with("locked"))
///     .compensate(async |_: Attempt| Outcome::done())
///     .step("payment", &["stock"], async |order: Attempt| println!("{:?}", order.results));
/// # let _ = flow;
/// ```
pub struct Flow {
    name: String,
    on: Result<Vec<Pattern>, DaemonError>,
    on_dead_step: OnDeadStep,
    told: (Option<String>, Option<String>),
    start: Start,
    steps: Vec<NativeStep>,
}

struct NativeStep {
    step: Step,
    handler: (DeliveryConfig, Arc<dyn Handler>),
    compensate: Option<(DeliveryConfig, Arc<dyn Handler>)>,
}

impl Flow {
    /// A flow that begins with every event of these topics, which may be patterns.
    #[must_use]
    pub fn new(name: impl Into<String>, on: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let name = name.into();
        let on = on.into_iter().map(|topic| topic.into().parse()).collect::<Result<Vec<Pattern>, _>>();
        let on = on.map_err(|source| DaemonError::Pattern { name: name.clone(), source });
        Self { name, on, on_dead_step: OnDeadStep::default(), told: (None, None), start: Start::Now, steps: Vec::new() }
    }

    /// A step that begins when those are done, with the default concurrency, time-out and retries. [`Attempt::results`] has what they
    /// have answered.
    #[must_use]
    pub fn step<F, Fut>(self, name: &str, after: &[&str], handle: F) -> Self
    where
        F: Fn(Attempt) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        self.step_with(name, after, DeliveryConfig::new(Vec::new()), handle)
    }

    /// The same with settings of its own; topics mean nothing in them.
    #[must_use]
    pub fn step_with<F, Fut>(mut self, name: &str, after: &[&str], mut delivery: DeliveryConfig, handle: F) -> Self
    where
        F: Fn(Attempt) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        delivery.topics.clear();
        let after = after.iter().map(|&name| name.into()).collect();
        let step = Step { name: name.into(), after, compensate: None };
        self.steps.push(NativeStep { step, handler: (delivery, Arc::new(Native(handle))), compensate: None });
        self
    }

    /// What undoes the step that was added last, when it is done and the flow fails.
    #[must_use]
    pub fn compensate<F, Fut>(self, handle: F) -> Self
    where
        F: Fn(Attempt) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        self.compensate_with(Undo::Done, DeliveryConfig::new(Vec::new()), handle)
    }

    /// The same with settings of its own, and a say in when.
    #[must_use]
    pub fn compensate_with<F, Fut>(mut self, when: Undo, mut delivery: DeliveryConfig, handle: F) -> Self
    where
        F: Fn(Attempt) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        delivery.topics.clear();
        if let Some(last) = self.steps.last_mut() {
            last.step.compensate = Some(when);
            last.compensate = Some((delivery, Arc::new(Native(handle))));
        }
        self
    }

    /// What it does when a step of it dies.
    #[must_use]
    pub fn on_dead_step(mut self, what: OnDeadStep) -> Self {
        self.on_dead_step = what;
        self
    }

    /// Where it begins if the database does not know it yet.
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// The topic of the event that tells that it has succeeded.
    #[must_use]
    pub fn on_done(mut self, topic: impl Into<String>) -> Self {
        self.told.0 = Some(topic.into());
        self
    }

    /// The topic of the event that tells that it has failed.
    #[must_use]
    pub fn on_dead(mut self, topic: impl Into<String>) -> Self {
        self.told.1 = Some(topic.into());
        self
    }

    pub(super) fn specs(self) -> Result<Vec<HandlerSpec>, DaemonError> {
        let Self { name, on, on_dead_step, told: (on_done, on_dead), start, steps } = self;
        let delivery = DeliveryConfig { on_done, on_dead, start, ..DeliveryConfig::of_flow(on?) };
        let graph = Graph::new(steps.iter().map(|step| step.step.clone()).collect());
        let graph = graph.map_err(|source| DaemonError::Graph { name: name.clone(), source })?;
        let name: Arc<str> = name.into();
        let mut specs = vec![flow_spec(&name, delivery, on_dead_step, Arc::new(graph))];
        let part = || Part::Step { flow: Arc::clone(&name) };
        for NativeStep { step, handler: (delivery, handler), compensate } in steps {
            specs.push(HandlerSpec { part: part(), ..native(step_handler(&name, &step.name), delivery, handler) });
            if let Some((delivery, handler)) = compensate {
                let name = compensation_handler(&name, &step.name);
                specs.push(HandlerSpec { part: part(), ..native(name, delivery, handler) });
            }
        }
        Ok(specs)
    }
}
