//! The nouns: an event, a handler's name, and one attempt at delivering the one to the other.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

use crate::trace::{TRACEPARENT, Trace};

/// The id of an event: `outbox.event.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub i64);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What stands for an event's key where many must be remembered. Two keys may have the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    #[must_use]
    pub fn of(key: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The header of an event that is handed over again.
const REPLAY: &str = "outbox-replay";

/// One row an app inserted into `outbox.event`.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: EventId,
    pub topic: String,
    pub key: Option<String>,
    /// The payload as JSON text, as PostgreSQL prints it. See [`Event::payload_as`].
    pub payload: String,
    /// The headers as JSON text: an object of strings. See [`Event::headers`].
    pub headers: String,
    pub created_at: Timestamp,
}

impl Event {
    /// The payload, deserialised.
    ///
    /// # Errors
    /// If the payload does not have the shape of `T`.
    pub fn payload_as<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.payload)
    }

    /// The headers the app gave, by name.
    #[must_use]
    pub fn headers(&self) -> BTreeMap<String, String> {
        // The table's CHECK lets nothing else in; a row that got past it has no usable headers.
        serde_json::from_str(&self.headers).unwrap_or_default()
    }

    /// How often it was handed over again by `outbox.replay` after it had ended; 0 for a delivery that was not.
    #[must_use]
    pub fn replay(&self) -> u32 {
        // Few events have it, and every attempt asks.
        if !self.headers.contains(REPLAY) {
            return 0;
        }
        self.headers().get(REPLAY).and_then(|count| count.parse().ok()).unwrap_or_default()
    }

    /// `<installation>:<event id>:<created_at in µs>`: what no other event has, even after a failover that gave out the same id again.
    #[must_use]
    pub fn origin(&self, installation: Uuid) -> String {
        origin(installation, self.id, self.created_at)
    }

    /// See [`Attempt::idempotency_key`].
    #[must_use]
    pub(crate) fn idempotency_key(&self, installation: Uuid, handler: &str) -> String {
        match self.replay() {
            0 => format!("{}:{handler}", self.origin(installation)),
            replay => format!("{}:{handler}:{replay}", self.origin(installation)),
        }
    }

    /// What the event occupies in memory, in bytes, near enough to bound buffers by.
    #[must_use]
    pub fn weight(&self) -> usize {
        size_of::<Self>()
            + self.topic.len()
            + self.key.as_ref().map_or(0, String::len)
            + self.payload.len()
            + self.headers.len()
    }
}

/// See [`Event::origin`].
#[must_use]
pub(crate) fn origin(installation: Uuid, id: EventId, created_at: Timestamp) -> String {
    format!("{installation}:{id}:{}", created_at.as_microsecond())
}

/// One run of a delivery: what a handler is called with.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub event: Arc<Event>,
    /// The handler's name.
    pub handler: Arc<str>,
    /// 1 for the first attempt of this delivery.
    pub number: u32,
    /// Whether the delivery has a row in `outbox.open`, which must name this attempt when it ends.
    pub has_row: bool,
    /// The installation's id, the same for every event of one `outbox` schema.
    pub installation: Uuid,
    /// Where the answer may be posted if it comes later, for a handler with `callback`.
    pub callback: Option<String>,
    /// For a step of a flow: the results of the steps that are done, by name; `null` for one without.
    pub results: Option<Arc<Value>>,
    /// Where its spans belong that are exported: below its own. `None`: none is, and what the event's headers say is passed on.
    pub trace: Option<Trace>,
    /// Where it says that it is alive; see [`Attempt::heartbeat`].
    pub heartbeats: Heartbeats,
}

impl Attempt {
    /// Says that the attempt is alive, and how far it is: `heartbeat(json!({"page": 3}))`, or `heartbeat(())` to keep the
    /// progress it told last. Its `timeout` begins again, up to `max_timeout` in all. Cheap: only the newest counts, and it
    /// is written at most once a second.
    pub fn heartbeat(&self, progress: impl Into<Value>) {
        self.heartbeats.beat(progress.into());
    }

    /// What the handler's own spans belong below, as the header `traceparent` of W3C Trace Context has it.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        match &self.trace {
            Some(trace) => trace.traceparent(),
            None => self.event.headers().remove(TRACEPARENT),
        }
    }

    /// What is handed to a handler outside: the payload; for a step of a flow `{"payload": …, "results": {…}}`.
    #[must_use]
    pub fn body(&self) -> Cow<'_, str> {
        match &self.results {
            None => Cow::Borrowed(&self.event.payload),
            Some(results) => Cow::Owned(format!("{{\"payload\": {}, \"results\": {results}}}", self.event.payload)),
        }
    }

    /// `<installation>:<event id>:<created_at in µs>:<handler>`, and `:<n>` when it is handed over for the *n*th time by `outbox.replay`:
    /// the same for every attempt of this delivery, and different from every other delivery even after a failover that gave out the
    /// same event id again.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        self.event.idempotency_key(self.installation, &self.handler)
    }
}

/// What an attempt said last.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    pub at: Instant,
    pub progress: Option<Value>,
}

/// Where an attempt says that it is alive. It keeps the newest heartbeat only, whether anybody listens or not. Most attempts say
/// nothing and end before anybody listens, so the channel is made when it is needed.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<OnceLock<watch::Sender<Option<Heartbeat>>>>);

impl Heartbeats {
    /// `null` keeps the progress that was told before.
    pub(crate) fn beat(&self, progress: Value) {
        self.newest().send_modify(|last| {
            let before = last.take().and_then(|last| last.progress);
            let progress = if progress.is_null() { before } else { Some(progress) };
            *last = Some(Heartbeat { at: Instant::now(), progress });
        });
    }

    /// Hears every heartbeat, or the newest of them; the first time the one that was said before.
    pub(crate) fn listen(&self) -> watch::Receiver<Option<Heartbeat>> {
        let mut receiver = self.newest().subscribe();
        if receiver.borrow().is_some() {
            receiver.mark_changed();
        }
        receiver
    }

    fn newest(&self) -> &watch::Sender<Option<Heartbeat>> {
        self.0.get_or_init(|| watch::Sender::new(None))
    }
}
