//! The daemon: leader → bell → tail → lane → runner → settle, in the order in which data flows; the janitor aside.
//!
//! [`Daemon::run`] is one loop: take the lead, lead until the database is lost or the daemon stops, begin again.

mod alerts;
pub mod beat;
pub mod bell;
pub mod breaker;
mod context;
mod desk;
mod error;
mod export;
mod full;
mod gauges;
mod health;
mod janitor;
pub mod lane;
mod leader;
mod look;
mod port;
mod read;
mod retention;
mod runner;
mod schedule;
pub mod settle;
mod spans;
mod spec;
pub mod tail;
mod term;
pub mod windows;
pub mod write;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::context::{Context, HandlerSpec, Positions};
use self::desk::Desk;
pub use self::error::DaemonError;
use self::export::exporter;
use self::gauges::Gauges;
use self::health::Health;
use self::leader::LeadError;
use self::port::{Answers, Port};
pub use self::spec::Flow;
use self::spec::{Called, names, specs};
use self::term::End;
use crate::config::{AlertConfig, Config, DeliveryConfig, ScheduleConfig};
use crate::event::{Attempt, Event};
use crate::handler::http;
use crate::handler::native::{IntoOutcome, IntoOutcomes, Native, NativeBatch, OfEvent};
use crate::metrics::Metrics;
use crate::observe::{Observation, Observer, chain};
use crate::postgres::Target;
use crate::systemd::{self, Watchdog};
use crate::topic::Pattern;

/// Between two attempts to connect: doubled from the first to the second, with full jitter on top of the first.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// Sessions that answer on the daemon's own port. None is opened before somebody asks.
const DESK_SESSIONS: usize = 2;

/// How long a daemon that has ended sends the last spans.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// A daemon, ready to run.
pub struct Daemon {
    context: Context,
    http: reqwest::Client,
    pool: deadpool_postgres::Pool,
    /// Handlers written in Rust; a reload leaves them as they are.
    native: Vec<HandlerSpec>,
    handlers: watch::Sender<Arc<[HandlerSpec]>>,
    schedules: watch::Sender<Arc<[ScheduleConfig]>>,
    alerts: watch::Sender<Arc<[AlertConfig]>>,
    configs: watch::Sender<Config>,
}

/// Hands a running daemon another configuration.
#[derive(Clone)]
pub struct Reloader(watch::Sender<Config>);

impl Daemon {
    #[must_use]
    pub fn builder() -> DaemonBuilder {
        DaemonBuilder::default()
    }

    /// Takes another configuration while [`Self::run`] runs.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        Reloader(self.configs.clone())
    }

    /// Dispatches until `stop` is cancelled, then drains: what runs may end, for at most `drain_timeout`.
    ///
    /// # Errors
    /// If the database cannot be reached or is not set up at the start, or the port is taken. Later the database is tried again
    /// for ever.
    ///
    /// # Panics
    /// If the daemon does, which would be a mistake in it.
    pub async fn run(self, stop: CancellationToken) -> Result<(), DaemonError> {
        // On a worker of the runtime: whoever awaits this may be on the thread of `block_on`, and then every attempt that begins or
        // ends would wake another thread, which took a quarter of the daemon's CPU time.
        let mut task = JoinSet::new();
        task.spawn(self.dispatch(stop));
        match task.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends, and takes everything with it.
            Some(Err(_)) | None => Ok(()),
        }
    }

    async fn dispatch(self, stop: CancellationToken) -> Result<(), DaemonError> {
        let Self { mut context, http, pool, native, handlers, schedules, alerts, configs } = self;
        let mut callback_url = context.daemon.callback_url.as_ref().map(ToString::to_string);
        let port = match context.daemon.listen {
            Some(address) => {
                let (port, address) = context.open_port(address, pool.clone()).await?;
                callback_url.get_or_insert_with(|| format!("http://{address}/callback"));
                Some(port)
            }
            None => None,
        };
        context.callback_url = callback_url.map(|url| url.trim_end_matches('/').to_owned());
        let mut changed = configs.subscribe();
        let traces = changed.borrow_and_update().traces.clone();
        let mut exporters = JoinSet::new();
        if let Some(traces) = &traces {
            let (metrics, observer) = (Arc::clone(&context.metrics), context.observer.clone());
            let (tracer, exporter) = exporter(traces, http.clone(), metrics, observer);
            context.tracer = Some(tracer);
            exporters.spawn(exporter.run());
        }
        let build = async {
            while changed.changed().await.is_ok() {
                let config = changed.borrow_and_update().clone();
                if config.daemon != context.daemon {
                    let text = "settings in [daemon] have changed; they apply from the next start";
                    context.observer.tell(&Observation::Notice { text: text.to_owned() });
                }
                if config.traces != traces {
                    let text = "settings in [traces] have changed; they apply from the next start";
                    context.observer.tell(&Observation::Notice { text: text.to_owned() });
                }
                match specs(&config, &native, &Called::new(&http, &pool)) {
                    Ok(specs) => {
                        context.metrics.keep(&names(&specs));
                        handlers.send_replace(specs);
                        let changed = |known: &Arc<[ScheduleConfig]>| **known != *config.schedules;
                        if changed(&schedules.borrow()) {
                            schedules.send_replace(config.schedules.into());
                        }
                        alerts.send_replace(config.alerts.into());
                    }
                    Err(error) => {
                        context.observer.tell(&Observation::ReloadRefused { error: error.to_string() });
                    }
                }
            }
        };
        let ended = tokio::select! {
            result = terms(&context, &stop) => result,
            () = build => std::future::pending().await,
        };
        // Nobody tells anything any more: the exporter sends what it has, and ends.
        context.tracer = None;
        let _ = tokio::time::timeout(LAST_SPANS, exporters.join_next()).await;
        if let Some(port) = port {
            port.close().await;
        }
        ended
    }
}

impl Context {
    async fn open_port(
        &self,
        address: SocketAddr,
        sql: deadpool_postgres::Pool,
    ) -> Result<(Port, SocketAddr), DaemonError> {
        let sessions = self.target.pool(DESK_SESSIONS)?;
        let gauges = Gauges::new(sessions.clone(), sql);
        let desk = Desk::new(sessions, self.observer.clone());
        let answers = Answers { metrics: Arc::clone(&self.metrics), health: Arc::clone(&self.health), desk, gauges };
        let opened = Port::open(address, answers, self.observer.clone()).await;
        opened.map_err(|source| DaemonError::Listen { address, source })
    }
}

/// Term after term.
async fn terms(context: &Context, stop: &CancellationToken) -> Result<(), DaemonError> {
    let mut pause = RECONNECT_MIN;
    let mut first = true;
    loop {
        // Trying to reach a database that is away is progress: a restart would not bring it back.
        context.progress.made(Instant::now());
        let taken = tokio::select! {
            taken = leader::take(context) => taken,
            () = stop.cancelled() => {
                context.observer.tell(&Observation::Drained { cut_off: 0 });
                return Ok(());
            }
        };
        let (reason, unwritten) = match taken {
            Ok(links) => {
                context.observer.tell(&Observation::Leading);
                systemd::ready("leading");
                pause = RECONNECT_MIN;
                let (positions, watched) = watch::channel(Positions::None);
                // The janitor, the schedules, the limits and the alerts work beside the term and end with it.
                let end = tokio::select! {
                    end = term::lead(context, links, &positions, stop) => end,
                    () = janitor::run(context, watched) => {
                        End::Lost { reason: "the janitor ended".to_owned(), unwritten: 0 }
                    }
                    () = schedule::run(context) => {
                        End::Lost { reason: "the schedules ended".to_owned(), unwritten: 0 }
                    }
                    () = full::run(context) => {
                        End::Lost { reason: "looking at backlogs ended".to_owned(), unwritten: 0 }
                    }
                    () = alerts::run(context) => {
                        End::Lost { reason: "the alerts ended".to_owned(), unwritten: 0 }
                    }
                };
                match end {
                    End::Stopped { cut_off } => {
                        context.observer.tell(&Observation::Drained { cut_off });
                        return Ok(());
                    }
                    End::Lost { reason, unwritten } if stop.is_cancelled() => {
                        context.observer.tell(&Observation::Hiccup { doing: "the last writes", error: reason });
                        context.observer.tell(&Observation::Drained { cut_off: unwritten });
                        return Ok(());
                    }
                    End::Lost { reason, unwritten } => (reason, unwritten),
                }
            }
            Err(LeadError::Setup(reason)) => return Err(DaemonError::Setup(reason)),
            Err(LeadError::Connect(error)) if first => return Err(error.into()),
            Err(error) => (chain(&error), 0),
        };
        first = false;
        let jittered = RECONNECT_MIN + pause.mul_f64(fastrand::f64());
        context.observer.tell(&Observation::TermEnded { reason, unwritten, pause: jittered });
        systemd::status("connecting again");
        pause = (pause * 2).min(RECONNECT_MAX);
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = stop.cancelled() => {}
        }
    }
}

impl Reloader {
    /// Gives the daemon another configuration; what runs goes on. `false` when the daemon has ended.
    #[must_use]
    pub fn reload(&self, config: Config) -> bool {
        self.0.send(config).is_ok()
    }
}

/// Puts a [`Daemon`] together.
#[derive(Default)]
pub struct DaemonBuilder {
    config: Config,
    target: Option<Target>,
    url: Option<String>,
    observer: Observer,
    native: Vec<Result<Vec<HandlerSpec>, DaemonError>>,
}

impl DaemonBuilder {
    /// The daemon's settings, and the handlers of a configuration file beside those written in Rust.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Where PostgreSQL is, as a URL. Without it: the environment and the configuration, as for the binary.
    #[must_use]
    pub fn database(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Where PostgreSQL is.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// Where the daemon answers `/metrics`, `/healthz` and `/readyz`, whatever the configuration says; so say it after
    /// [`Self::config`]. Without either there is no port: a program must not open one by surprise.
    #[must_use]
    pub fn listen(mut self, address: Option<SocketAddr>) -> Self {
        self.config.daemon.listen = address;
        self
    }

    /// Who else is told what happens.
    #[must_use]
    pub fn observer(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// A handler written in Rust, with the default concurrency, time-out and retries. Topics are patterns: `*` is one
    /// word, `#` any number of words. An error it returns is a failed attempt; see [`IntoOutcome`] for more.
    #[must_use]
    pub fn handler<F, Fut>(
        mut self,
        name: impl Into<String>,
        topics: impl IntoIterator<Item = impl Into<String>>,
        handle: F,
    ) -> Self
    where
        F: Fn(Event) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        let name = name.into();
        let patterns = topics.into_iter().map(|topic| topic.into().parse()).collect::<Result<Vec<Pattern>, _>>();
        self.native.push(match patterns {
            Ok(patterns) => Ok(vec![spec::native(name, DeliveryConfig::new(patterns), Arc::new(OfEvent(handle)))]),
            Err(source) => Err(DaemonError::Pattern { name, source }),
        });
        self
    }

    /// A handler written in Rust with its own settings, which is told the attempt and its idempotency key too.
    #[must_use]
    pub fn handler_with<F, Fut>(mut self, name: impl Into<String>, delivery: DeliveryConfig, handle: F) -> Self
    where
        F: Fn(Attempt) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        self.native.push(Ok(vec![spec::native(name.into(), delivery, Arc::new(Native(handle)))]));
        self
    }

    /// A handler written in Rust that takes many events at once, with its own settings; without [`DeliveryConfig::batch`] it gets one
    /// at a time.
    #[must_use]
    pub fn batch_handler<F, Fut>(mut self, name: impl Into<String>, delivery: DeliveryConfig, handle: F) -> Self
    where
        F: Fn(Vec<Attempt>) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcomes,
    {
        self.native.push(Ok(vec![spec::native(name.into(), delivery, Arc::new(NativeBatch(handle)))]));
        self
    }

    /// A flow whose steps are written in Rust.
    #[must_use]
    pub fn flow(mut self, flow: Flow) -> Self {
        self.native.push(flow.specs());
        self
    }

    /// # Errors
    /// If a name or a pattern is not one, or the settings for the connection are wrong.
    pub fn build(self) -> Result<Daemon, DaemonError> {
        let env = |name: &str| std::env::var(name).ok();
        let Self { config, target, url, observer, native } = self;
        let target = match target {
            Some(target) => target,
            None => Target::resolve(url.as_deref(), config.daemon.database_url.as_ref(), &env)?,
        };
        let native: Vec<HandlerSpec> =
            native.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        let http = http::client().map_err(DaemonError::Http)?;
        let pool = target.pool(config.daemon.pool_size)?;
        let handlers = specs(&config, &native, &Called::new(&http, &pool))?;
        let (handlers, watched) = watch::channel(handlers);
        let (schedules, ticking) = watch::channel(config.schedules.clone().into());
        let (alerts, alerting) = watch::channel(config.alerts.clone().into());
        let daemon = config.daemon.clone();
        let metrics = Arc::new(Metrics::new().map_err(DaemonError::Metrics)?);
        metrics.keep(&names(&watched.borrow()));
        let progress = Arc::new(Watchdog::from_env());
        let health = Arc::new(Health::new(Arc::clone(&progress)));
        let (counts, notes) = (Arc::clone(&metrics), Arc::clone(&health));
        let observer = observer.and(move |observation| {
            counts.count(observation);
            notes.note(observation);
        });
        let context = Context {
            target,
            daemon,
            observer,
            progress,
            health,
            metrics,
            handlers: watched,
            schedules: ticking,
            alerts: alerting,
            flag: Notify::new(),
            // Neither is open yet.
            callback_url: None,
            tracer: None,
        };
        Ok(Daemon { context, http, pool, native, handlers, schedules, alerts, configs: watch::Sender::new(config) })
    }
}
