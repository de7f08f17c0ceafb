//! What the daemon is to do. [`Config`] is the file as meant: every default filled in, every relation checked.
//!
//! The file as written is TOML; [`Config::parse`] reads it and reports everything that is wrong with it at once. A file
//! becomes text with sections (`text`), a document and its syntax errors (`syntax`), typed fields (`reader`), and
//! then what it means (`parse`, `kind`, `delivery`). `write` is the way back. Nothing here connects, resolves or runs anything.

mod alert;
mod delivery;
pub mod duration;
mod error;
mod expand;
mod flow;
mod keys;
mod kind;
mod load;
mod names;
mod parse;
mod rate;
mod reader;
mod schedule;
mod syntax;
#[cfg(test)]
mod tests;
mod text;
mod traces;
mod url;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use ipnet::IpNet;

use crate::flow::{Graph, OnDeadStep};
use crate::outcome::{PollPolicy, RetryPolicy};
use crate::timetable::Timetable;
use crate::topic::Pattern;

pub use alert::{AlertConfig, Condition};
pub use duration::DurationError;
pub use error::{Error, Errors, LoadError};
pub use rate::{Period, RateLimit};
pub use traces::TracesConfig;
pub use url::HttpUrl;
pub(crate) use url::{Part, Place, Taken, URL_BYTES_MAX, has_dot_segment};

/// The largest file that is read.
pub const FILE_BYTES_MAX: u64 = 1_048_576;

/// Instances of one flow that are in the daemon's memory at most. More of them have rows.
const INSTANCES_MAX: usize = 4096;

/// Where the daemon's own port is if a file does not say it.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7474);

/// Everything one daemon needs to know. See `systemd/outboxd.toml` for every key, its default and its limits.
///
/// The default has no handlers, and no port of its own: a program that embeds the daemon opens one only if it wants to. A file
/// that says nothing means [`DEFAULT_LISTEN`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    pub daemon: DaemonConfig,
    /// Where spans are sent; `None`: nowhere.
    pub traces: Option<TracesConfig>,
    /// In the order of their names.
    pub handlers: Vec<HandlerConfig>,
    /// In the order of their names.
    pub flows: Vec<FlowConfig>,
    /// In the order of their names.
    pub schedules: Vec<ScheduleConfig>,
    pub alerts: Vec<AlertConfig>,
}

/// The `[daemon]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// Where PostgreSQL is, if the file says so; a flag or the environment wins over it.
    pub database_url: Option<Secret>,
    /// The fallback scan; `None` ("off") relies on the bell alone.
    pub poll_interval: Option<Duration>,
    /// How long a stopping daemon waits for running attempts.
    pub drain_timeout: Duration,
    /// How long a dedup key is remembered.
    pub dedup_window: Duration,
    /// How long `outbox.once` remembers.
    pub once_window: Duration,
    /// How long what has finished is kept, with its event; `None` ("off") keeps everything.
    pub retention: Option<Duration>,
    /// Connections for SQL handlers.
    pub pool_size: usize,
    /// Where `/metrics`, `/healthz`, `/readyz`, callbacks and questions for an event are answered; `None` ("off"): nowhere. Port 0: the system chooses one.
    pub listen: Option<SocketAddr>,
    /// Where callbacks reach the port from outside; `None`: where it listens.
    pub callback_url: Option<reqwest::Url>,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            database_url: None,
            poll_interval: Some(Duration::from_secs(5)),
            drain_timeout: Duration::from_secs(30),
            dedup_window: Duration::from_hours(24),
            once_window: Duration::from_hours(30 * 24),
            retention: Some(Duration::from_hours(7 * 24)),
            pool_size: 8,
            listen: None,
            callback_url: None,
        }
    }
}

/// One `[handler.NAME]` table.
#[derive(Debug, Clone, PartialEq)]
pub struct HandlerConfig {
    pub name: Arc<str>,
    pub kind: Kind,
    pub delivery: DeliveryConfig,
}

/// One `[flow.NAME]` table: steps of which one follows another.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowConfig {
    pub name: Arc<str>,
    /// What it begins with, and who is told of its end. What limits attempts means nothing here.
    pub delivery: DeliveryConfig,
    pub on_dead_step: OnDeadStep,
    /// Which step follows which.
    pub graph: Arc<Graph>,
    /// In the order of their names.
    pub steps: Vec<StepConfig>,
}

/// One `[flow.NAME.step.STEP]` table.
#[derive(Debug, Clone, PartialEq)]
pub struct StepConfig {
    pub name: Arc<str>,
    pub kind: Kind,
    /// Without topics.
    pub delivery: DeliveryConfig,
    /// Only instances take it that began when it was a part of the flow.
    pub retired: bool,
    pub compensate: Option<CompensationConfig>,
}

/// `compensate = { … }`: what undoes a step.
#[derive(Debug, Clone, PartialEq)]
pub struct CompensationConfig {
    pub kind: Kind,
    /// Without topics.
    pub delivery: DeliveryConfig,
}

impl StepConfig {
    /// What is called for it: to take the step, and to undo it.
    pub fn handlers(&self) -> impl Iterator<Item = (&Kind, &DeliveryConfig)> {
        let undo = self.compensate.iter().map(|undo| (&undo.kind, &undo.delivery));
        std::iter::once((&self.kind, &self.delivery)).chain(undo)
    }
}

/// One `[schedule.NAME]` table: an event of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleConfig {
    pub name: Arc<str>,
    pub timetable: Timetable,
    pub topic: String,
    /// JSON text.
    pub payload: String,
    pub key: Option<String>,
    /// Of the ticks that were missed while no daemon ran, the last so many are made good.
    pub catch_up: usize,
}

/// How many deliveries may wait for a handler, and what happens to an event beyond that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxBacklog {
    /// 1 to 1,000,000.
    pub events: u32,
    /// Whether an INSERT is refused, or only its session warned.
    pub refuses: bool,
}

/// What a handler wants and how it is run, whatever its kind.
#[derive(Debug, Clone, PartialEq)]
pub struct DeliveryConfig {
    pub topics: Vec<Pattern>,
    /// Attempts running at the same time; with `batch` calls.
    pub concurrency: usize,
    /// The longest an attempt may run, or may be silent if it says that it is alive.
    pub timeout: Duration,
    /// The longest an attempt may run that says so, longer than `timeout`; `None`: its word counts for nothing.
    pub max_timeout: Option<Duration>,
    /// Attempts that begin in a time, those that run again included; `None`: as many as can.
    pub rate: Option<RateLimit>,
    pub retry: RetryPolicy,
    /// How often it is asked again when it has answered "not yet"; `None`: only when its answer says when.
    pub poll: Option<PollPolicy>,
    /// Whether it is told where an answer may be posted that comes later. Every attempt has a row from its beginning then.
    pub callback: bool,
    /// One delivery of a key at a time, in order; what a dead one does to those behind it. `None`: no order.
    pub ordered: Option<OnDeadKey>,
    /// Of those of a key that wait, only the latest is handed over; the others are done as merged. With `ordered` only, and
    /// [`OnDeadKey::Skip`].
    pub coalesce: bool,
    /// So many attempts of a key run at the same time, in no order; `None`: any number. Never with `ordered`.
    pub concurrency_per_key: Option<usize>,
    /// Events are handed over together; `None`: each by itself. A handler that takes one gets them at the same time.
    pub batch: Option<BatchConfig>,
    /// How many deliveries may wait for it before its topics take no more events; `None`: any number.
    pub max_backlog: Option<MaxBacklog>,
    /// An attempt has a row before it begins, not only after it has lasted a second.
    pub record: Record,
    /// Whether nothing but probes is sent to a target that cannot be reached or fails.
    pub breaker: bool,
    /// The topic of the event that tells of a delivery that succeeded.
    pub on_done: Option<String>,
    /// The topic of the event that tells of a dead delivery.
    pub on_dead: Option<String>,
    /// Where a handler begins that the database does not know yet.
    pub start: Start,
}

impl DeliveryConfig {
    /// A flow calls nothing itself, so nothing limits it but what the daemon holds of it.
    #[must_use]
    pub(crate) fn of_flow(on: Vec<Pattern>) -> Self {
        Self { concurrency: INSTANCES_MAX, breaker: false, ..Self::new(on) }
    }

    /// The defaults, for these topics.
    #[must_use]
    pub fn new(topics: Vec<Pattern>) -> Self {
        Self {
            topics,
            concurrency: 8,
            timeout: Duration::from_secs(30),
            max_timeout: None,
            rate: None,
            retry: RetryPolicy::default(),
            poll: None,
            callback: false,
            ordered: None,
            coalesce: false,
            concurrency_per_key: None,
            batch: None,
            max_backlog: None,
            record: Record::Late,
            breaker: true,
            on_done: None,
            on_dead: None,
            start: Start::Now,
        }
    }
}

/// How many events are handed over in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchConfig {
    /// At most so many: 2 to 1000.
    pub max: usize,
    /// How long the first of them waits for others. What is claimed from `outbox.open` does not wait.
    pub wait: Duration,
}

/// What a dead delivery of an ordered handler does to those of its key behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDeadKey {
    /// They wait until it is redriven or discarded.
    Block,
    /// They go on without it.
    Skip,
}

impl OnDeadKey {
    /// The word for it: `block` or `skip`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Skip => "skip",
        }
    }
}

/// When a running attempt gets a row in `outbox.open`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// Before it begins: it counts even if it ends the daemon.
    Start,
    /// When it has lasted a second.
    Late,
}

/// Where a new handler begins to read the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the events that become visible after the daemon first saw the handler. The first handlers of an
    /// installation begin at the beginning: there is nothing before them.
    Now,
    /// With the oldest event still in the log.
    Beginning,
}

/// How a handler is called.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Http(HttpConfig),
    Command(CommandConfig),
    Sql(SqlConfig),
    /// A Rust function registered with [`DaemonBuilder::handler`](crate::DaemonBuilder::handler).
    Native,
}

impl Kind {
    /// The word for it: `http`, `command`, `sql` or `rust`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Kind::Http(_) => "http",
            Kind::Command(_) => "command",
            Kind::Sql(_) => "sql",
            Kind::Native => "rust",
        }
    }
}

/// `http = { url, allow, secret, headers }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// `http` or `https`, without credentials and fragment.
    pub url: HttpUrl,
    /// Where a host that an event names may be, beside addresses that anybody can reach.
    pub allow: Vec<IpNet>,
    /// The Standard Webhooks signing keys, decoded from `whsec_<base64>`, 24 to 64 bytes each: a signature for each of them.
    pub secrets: Vec<SigningKey>,
    /// Sent with every request; none of them is one that outboxd sets itself.
    pub headers: BTreeMap<String, Secret>,
}

/// `command = [...]`, `env = {...}`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandConfig {
    /// The program, an absolute path or a name looked up in `PATH`, and its arguments. Never a shell line.
    pub argv: Vec<String>,
    /// The environment beside `PATH` and the `OUTBOX_*` variables.
    pub env: BTreeMap<String, Secret>,
}

/// `sql = "schema.function"`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlConfig {
    pub schema: String,
    pub function: String,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself. Never log it, never store it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The bytes a webhook is signed with; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Vec<u8>);

impl SigningKey {
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The key itself. Never log it, never store it.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
