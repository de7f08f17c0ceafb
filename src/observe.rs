//! Every fact worth telling, once. An [`Observation`] becomes a log line, a count ([`crate::metrics`]), and a
//! signal for whoever watches (tests do).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::field::{DisplayValue, display};
use tracing::{debug, error, info, warn};

use crate::event::EventId;
use crate::trace::TraceId;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// The daemon's own port is open.
    Listening { address: SocketAddr },
    /// This daemon dispatches now.
    Leading,
    /// Another session leads; this daemon waits for its place.
    StandingBy { leader: String },
    /// A leader's session said nothing for too long and was ended.
    Deposed { pid: i32, silent: Duration },
    /// Dispatching ended, because of this; the daemon connects again after a pause. The outcomes of so many attempts are not
    /// written any more, because another daemon may lead: they run again.
    TermEnded { reason: String, unwritten: usize, pause: Duration },
    /// The database was restored or failed over; positions are rebuilt from the log.
    ClusterChanged { stored: String, found: String, restamped: u64 },
    /// Deliveries that a daemon which died left running; they run again or are dead.
    Recovered { deliveries: i64 },
    /// A handler is registered in the database and not in the configuration.
    HandlerAbsent { handler: String },
    /// The flag says "ring" and no producer can have missed it.
    Asleep,
    /// The flag says "be silent".
    Awake,
    /// The bell was heard.
    Woken,
    /// The fallback scan found events that nobody rang for.
    PollFound { events: usize },
    /// A page of the log was read.
    PageRead { events: usize },
    /// A handler has no room and reads for itself from here on.
    FellBehind { handler: Arc<str> },
    /// A handler reads with the others again.
    CaughtUp { handler: Arc<str> },
    /// The sweep found deliveries that the tail never saw.
    SweepFound { deliveries: i64 },
    /// A schedule has ticked, and this is the event.
    Ticked { schedule: Arc<str>, event: EventId },
    /// A schedule has ticked more often while no daemon ran than is made good: those before this time are not.
    TicksMissed { schedule: Arc<str>, before: String },
    /// As many deliveries wait for a handler as may: events of its topics are refused, or their sessions warned.
    Full { handler: Arc<str>, events: i64, refuses: bool },
    /// A handler's topics take events again.
    NotFull { handler: Arc<str> },
    /// An alert has been raised, or cleared; without a handler it is about the daemon.
    Alert { name: Arc<str>, handler: Arc<str>, raised: bool },
    /// A part of the log, from this id to below that one, was old and finished, and has gone.
    Retired { from: i64, below: i64 },
    /// An attempt ended and its delivery is done.
    Done { event: EventId, handler: Arc<str>, attempt: u32, trace: Option<TraceId>, ran: Duration },
    /// An attempt failed; the delivery runs again. `outcome` is the attempt's in `outbox.attempt`.
    Retrying {
        event: EventId,
        handler: Arc<str>,
        attempt: u32,
        trace: Option<TraceId>,
        outcome: &'static str,
        after: Duration,
        error: String,
    },
    /// An attempt asked to be run again later.
    Snoozed { event: EventId, handler: Arc<str>, attempt: u32, trace: Option<TraceId>, after: Duration },
    /// An attempt ended, and its answer comes later.
    Waiting { event: EventId, handler: Arc<str>, attempt: u32, trace: Option<TraceId>, timeout: Duration },
    /// A callback brought an answer that counts.
    Answered { event: EventId, handler: Arc<str>, attempt: u32, trace: Option<TraceId>, done: bool },
    /// A delivery was cancelled by hand, and its running attempt ended.
    Cancelled { event: EventId, handler: Arc<str>, attempt: u32, trace: Option<TraceId> },
    /// A handler's target cannot be reached or fails: nothing but probes is sent.
    BreakerOpened { handler: Arc<str>, error: String },
    /// A handler's target is there again.
    BreakerClosed { handler: Arc<str> },
    /// Nothing begins for a handler.
    Paused { handler: Arc<str>, reason: String },
    /// A handler's pause is over.
    Resumed { handler: Arc<str> },
    /// Other limits count than the configured ones, or those again: so many attempts at the same time, and in a time.
    Limited { handler: Arc<str>, concurrency: Option<usize>, rate: Option<String> },
    /// A delivery was given up.
    Dead { event: EventId, handler: Arc<str>, attempt: u32, trace: Option<TraceId>, error: String },
    /// A delivery expired before it ran, or ran again; its last attempt, 0 if there was none.
    Expired { event: EventId, handler: Arc<str>, attempt: u32, trace: Option<TraceId> },
    /// It has not begun, and a later one of its key does its work. What is merged in the database is not told.
    Merged { event: EventId, handler: Arc<str>, trace: Option<TraceId>, into: EventId },
    /// An outcome was refused: the delivery had been finished or taken away by somebody else.
    Refused { event: EventId, handler: Arc<str>, attempt: u32, trace: Option<TraceId> },
    /// The states of so many deliveries were written together.
    Written { deliveries: usize },
    /// A state could not be written.
    Unwritable { event: EventId, handler: Arc<str>, attempt: u32, trace: Option<TraceId>, error: String },
    /// The receiver of spans cannot be reached, or does not take them; they are dropped. Told once until it takes some again.
    SpansRefused { error: String },
    /// The receiver of spans takes them again.
    SpansTaken,
    /// The configuration was read again.
    Reloaded { handlers: usize },
    /// The configuration could not be read again; the old one stays.
    ReloadRefused { error: String },
    /// The daemon stops: nothing new starts.
    Draining { running: usize },
    /// The daemon has stopped; so many attempts were cut off.
    Drained { cut_off: usize },
    /// Something on the side failed and will be tried again.
    Hiccup { doing: &'static str, error: String },
    /// Something an operator should know about the database.
    Notice { text: String },
}

/// Tells observations to the log, and to a watcher if there is one.
#[derive(Clone, Default)]
pub struct Observer {
    watcher: Option<Arc<Watcher>>,
}

type Watcher = dyn Fn(&Observation) + Send + Sync;

impl Observer {
    /// Calls `watcher` with every observation, from whichever task makes it; it must not block.
    pub fn watching(watcher: impl Fn(&Observation) + Send + Sync + 'static) -> Self {
        Self { watcher: Some(Arc::new(watcher)) }
    }

    /// Calls `watcher` too, before the one there is.
    #[must_use]
    pub fn and(self, watcher: impl Fn(&Observation) + Send + Sync + 'static) -> Self {
        match self.watcher {
            None => Self::watching(watcher),
            Some(other) => Self::watching(move |observation| {
                watcher(observation);
                other(observation);
            }),
        }
    }

    pub fn tell(&self, observation: &Observation) {
        observation.log();
        if let Some(watcher) = &self.watcher {
            watcher(observation);
        }
    }
}

impl Observation {
    fn log(&self) {
        match self {
            Self::Done { .. }
            | Self::PageRead { .. }
            | Self::Written { .. }
            | Self::Asleep
            | Self::Awake
            | Self::Woken => self.log_traffic(),
            Self::Retrying { .. }
            | Self::Snoozed { .. }
            | Self::Waiting { .. }
            | Self::Answered { .. }
            | Self::Dead { .. }
            | Self::Cancelled { .. }
            | Self::Expired { .. }
            | Self::Merged { .. }
            | Self::Refused { .. }
            | Self::Unwritable { .. } => self.log_delivery(),
            _ => self.log_daemon(),
        }
    }

    /// Per event or per wake-up: only for whoever asks for it.
    fn log_traffic(&self) {
        match self {
            Self::Done { event, handler, attempt, trace, ran } => {
                debug!(%event, %handler, attempt, trace_id = shown(*trace), ran_ms = ran.as_secs_f64() * 1e3, "done");
            }
            Self::PageRead { events } => debug!(events, "read the log"),
            Self::Written { deliveries } => debug!(deliveries, "written"),
            Self::Asleep => debug!("asleep until the bell rings"),
            Self::Awake => debug!("awake; producers stay silent"),
            _ => debug!("the bell rang"),
        }
    }

    fn log_delivery(&self) {
        match self {
            Self::Retrying { event, handler, attempt, trace, after, error, .. } => {
                let (trace_id, after_ms) = (shown(*trace), after.as_millis());
                warn!(%event, %handler, attempt, trace_id, after_ms, error, "attempt failed, will run again");
            }
            Self::Snoozed { event, handler, attempt, trace, after } => {
                info!(%event, %handler, attempt, trace_id = shown(*trace), after_ms = after.as_millis(), "snoozed");
            }
            Self::Waiting { event, handler, attempt, trace, timeout } => {
                let (trace_id, timeout_s) = (shown(*trace), timeout.as_secs());
                info!(%event, %handler, attempt, trace_id, timeout_s, "waits for an answer");
            }
            Self::Answered { event, handler, attempt, trace, done } => {
                info!(%event, %handler, attempt, trace_id = shown(*trace), done, "answered by a callback");
            }
            Self::Dead { event, handler, attempt, trace, error } => {
                let trace_id = shown(*trace);
                error!(%event, %handler, attempt, trace_id, error, "dead; `outboxd retry` runs it again");
            }
            Self::Cancelled { event, handler, attempt, trace } => {
                info!(%event, %handler, attempt, trace_id = shown(*trace), "cancelled while it ran");
            }
            Self::Expired { event, handler, attempt, trace } => {
                info!(%event, %handler, attempt, trace_id = shown(*trace), "expired before it ran");
            }
            Self::Merged { event, handler, trace, into } => {
                debug!(%event, %handler, trace_id = shown(*trace), %into, "merged into a later one of its key");
            }
            Self::Refused { event, handler, attempt, trace } => {
                let trace_id = shown(*trace);
                warn!(%event, %handler, attempt, trace_id, "outcome refused: the delivery was settled by somebody else");
            }
            Self::Unwritable { event, handler, attempt, trace, error } => {
                error!(%event, %handler, attempt, trace_id = shown(*trace), error, "a state could not be written");
            }
            _ => {}
        }
    }

    fn log_daemon(&self) {
        match self {
            Self::Listening { address } => {
                info!(%address, "listening: /metrics, /healthz, /readyz, /callback, /events");
            }
            Self::Leading => info!("leading: this daemon dispatches"),
            Self::StandingBy { leader } => info!(leader, "standing by: another daemon leads"),
            Self::Deposed { pid, silent } => {
                warn!(pid, silent_s = silent.as_secs(), "ended the session of a silent leader");
            }
            Self::TermEnded { reason, unwritten, pause } => {
                warn!(
                    reason,
                    unwritten,
                    pause_ms = pause.as_millis(),
                    "dispatching ended, connecting again after a pause"
                );
            }
            Self::ClusterChanged { stored, found, restamped } => warn!(
                stored,
                found,
                restamped,
                "the database was restored or failed over; reading the whole log again, compared with what is settled"
            ),
            Self::Recovered { deliveries } => warn!(deliveries, "recovered what a stopped daemon left running"),
            Self::HandlerAbsent { handler } => {
                warn!(handler, "registered but not in the configuration; `outboxd forget` removes it");
            }
            Self::PollFound { events } => {
                warn!(events, "the poll found events nobody rang for; is the trigger enabled?");
            }
            Self::FellBehind { handler } => debug!(%handler, "fell behind, reads for itself"),
            Self::CaughtUp { handler } => debug!(%handler, "caught up"),
            Self::SweepFound { deliveries } => warn!(deliveries, "the sweep found deliveries the tail never saw"),
            Self::Retired { from, below } => info!(from, below, "old and finished: events and outcomes have gone"),
            Self::Ticked { schedule, event } => debug!(%schedule, %event, "ticked"),
            Self::TicksMissed { schedule, before } => {
                warn!(%schedule, before, "ticked more often while no daemon ran than `catch_up` makes good");
            }
            Self::SpansRefused { error } => {
                warn!(error, "the receiver of traces takes no spans; they are dropped until it does");
            }
            Self::SpansTaken => info!("the receiver of traces takes spans again"),
            Self::Reloaded { handlers } => info!(handlers, "configuration reloaded"),
            Self::ReloadRefused { error } => error!(error, "configuration not reloaded, the old one stays"),
            Self::Draining { running } => info!(running, "stopping: waiting for running attempts"),
            Self::Drained { cut_off } => info!(cut_off, "stopped"),
            Self::BreakerOpened { handler, error } => {
                warn!(%handler, error, "breaker opened: its target fails, only probes are sent");
            }
            Self::BreakerClosed { handler } => info!(%handler, "breaker closed: its target is there again"),
            Self::Paused { handler, reason } => warn!(%handler, reason, "paused; `outboxd resume` goes on"),
            Self::Alert { name, handler, raised: true } => warn!(alert = %name, %handler, "alert raised"),
            Self::Alert { name, handler, raised: false } => info!(alert = %name, %handler, "alert cleared"),
            Self::Full { handler, events, refuses: true } => {
                warn!(%handler, events, "full: its topics take no more events");
            }
            Self::Full { handler, events, refuses: false } => warn!(%handler, events, "full: producers are warned"),
            Self::NotFull { handler } => info!(%handler, "not full any more: its topics take events"),
            Self::Resumed { handler } => info!(%handler, "resumed"),
            Self::Limited { handler, concurrency, rate } => info!(%handler, concurrency, rate, "limits set by hand"),
            Self::Hiccup { doing, error } => warn!(doing, error, "failed, will try again"),
            Self::Notice { text } => warn!("{text}"),
            _ => {}
        }
    }
}

/// As a field of a log line, which has none without it.
fn shown(trace: Option<TraceId>) -> Option<DisplayValue<TraceId>> {
    trace.map(display)
}

/// The message and the messages of its sources, each once.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
