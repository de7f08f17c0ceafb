//! What a handler emits when it succeeds: further events, the next steps of its work.
//!
//! They are written in the transaction that finishes the delivery: they are there if it is done, and only then. Each carries
//! the id of the event that caused it and, as `correlation_id`, that of the first event of all; see `outbox.related`. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::event::Event;
use crate::topic::{Pattern, TOPIC_BYTES_MAX};
use crate::trace::{self, Trace};

/// Events that one success emits at most.
pub const EMITS_MAX: usize = 100;
/// The largest payload of one, in bytes of JSON text. As `jsonb` it takes eight times that at most, which an event can hold.
pub const PAYLOAD_BYTES_MAX: usize = 1_048_576;
/// The largest payload that is repeated when the end of its delivery is told; it leaves room for a result.
const TOLD_PAYLOAD_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 65_536;
/// The longest key or dedup key, in bytes.
const KEY_BYTES_MAX: usize = 512;
/// All names and values of its headers, in bytes; with those that are added they stay below what an event can hold.
const HEADERS_BYTES_MAX: usize = 32_768;
/// A header of the cause is passed on if it is no longer than that, in bytes.
const PASSED_ON_BYTES_MAX: usize = 512;

/// The header with the id that everything has which came of one event.
pub const CORRELATION: &str = "correlation_id";
/// The header with the id of the event whose delivery emitted this one.
pub const CAUSATION: &str = "causation_id";

/// The header of an event that tells of a finished delivery: the id of its event.
const DONE_OF: &str = "outbox-done-of";

/// One event to emit.
///
/// ```
/// use outboxd::{Emit, Outcome};
/// use serde_json::json;
///
/// let paid = Emit::new("order.paid", json!({ "order": 7 })).key("order-7");
/// let outcome = Outcome::Done { result: None, emit: vec![paid] };
/// # assert!(matches!(outcome, Outcome::Done { emit, .. } if emit.len() == 1));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Emit {
    pub(crate) topic: String,
    /// JSON text.
    pub(crate) payload: String,
    pub(crate) key: Option<String>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) delay: Option<Duration>,
    pub(crate) dedup_key: Option<String>,
}

impl Emit {
    /// An event of this topic. What is wrong with it, the attempt's error will say.
    #[must_use]
    pub fn new(topic: impl Into<String>, payload: impl Into<Value>) -> Self {
        Self::of_json(topic.into(), payload.into().to_string())
    }

    /// The same with a payload that is JSON text already.
    pub(crate) fn of_json(topic: String, payload: String) -> Self {
        Self { topic, payload, key: None, headers: BTreeMap::new(), delay: None, dedup_key: None }
    }

    /// Handlers with `ordered` keep the order of a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// One header more.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Not to be handled before this time has passed.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Where there is an event of this topic and dedup key within `dedup_window`, nothing is emitted.
    #[must_use]
    pub fn dedup_key(mut self, dedup_key: impl Into<String>) -> Self {
        self.dedup_key = Some(dedup_key.into());
        self
    }

    /// The same, marked as what came of this event, in an attempt whose spans belong there if they are exported.
    #[must_use]
    pub(crate) fn caused_by(mut self, event: &Event, trace: Option<Trace>) -> Self {
        let mut given = event.headers();
        given.retain(|_, value| value.len() <= PASSED_ON_BYTES_MAX);
        let correlation = given.remove(CORRELATION).unwrap_or_else(|| event.id.to_string());
        self.headers.entry(CORRELATION.to_owned()).or_insert(correlation);
        self.headers.insert(CAUSATION.to_owned(), event.id.to_string());
        for (name, value) in trace::context(given, trace) {
            self.headers.entry(name.to_owned()).or_insert(value);
        }
        self
    }

    fn check(&self) -> Result<(), String> {
        let Self { topic, payload, key, headers, delay: _, dedup_key } = self;
        if !topic.parse::<Pattern>().is_ok_and(|pattern| pattern.is_topic()) {
            return Err(format!(
                "its topic is {:?}; it must be words of letters, digits, _, : and -, separated by dots, at most {TOPIC_BYTES_MAX} bytes",
                shortened(topic)
            ));
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(format!("its payload has {} bytes; at most {PAYLOAD_BYTES_MAX} are emitted", payload.len()));
        }
        // JSON text holds NUL only as an escape. What cannot be read back is nothing that PostgreSQL could read.
        let may_hold_nul = payload.contains("\\u0000");
        if may_hold_nul && serde_json::from_str(payload).map_or(true, |value: Value| has_nul(&value)) {
            return Err("its payload holds a NUL character, which PostgreSQL cannot store".to_owned());
        }
        for (what, key) in [("key", key), ("dedup_key", dedup_key)] {
            let Some(key) = key else { continue };
            if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains(char::is_control) {
                let shown = shortened(key);
                return Err(format!(
                    "its {what} is {shown:?}; it must be 1 to {KEY_BYTES_MAX} bytes without control characters"
                ));
            }
        }
        let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > HEADERS_BYTES_MAX {
            return Err(format!("its headers have {bytes} bytes; at most {HEADERS_BYTES_MAX} are emitted"));
        }
        match headers.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
            Some((name, _)) => Err(format!("its header {:?} holds a NUL character", shortened(name))),
            None => Ok(()),
        }
    }
}

/// The event that tells of a finished delivery, if its handler names a topic for that. The end of such an event is not told. An
/// event has no room for a large payload and what is said about it: then the payload is null, and stands in the event itself.
pub(crate) fn of_done(
    topic: &str,
    handler: &str,
    event: &Event,
    attempts: u32,
    result: Option<&Value>,
    trace: Option<Trace>,
) -> Option<Emit> {
    #[derive(Serialize)]
    struct Told<'a> {
        event_id: i64,
        handler: &'a str,
        topic: &'a str,
        key: Option<&'a str>,
        attempts: u32,
        result: Option<&'a Value>,
        payload: Option<&'a RawValue>,
    }
    if event.headers().contains_key(DONE_OF) {
        return None;
    }
    let payload = serde_json::from_str(&event.payload).ok().filter(|_| event.payload.len() <= TOLD_PAYLOAD_BYTES_MAX);
    let (event_id, key) = (event.id.0, event.key.as_deref());
    let told = Told { event_id, handler, topic: &event.topic, key, attempts, result, payload };
    let mut emit = Emit::of_json(topic.to_owned(), serde_json::to_string(&told).ok()?);
    emit.key.clone_from(&event.key);
    Some(emit.header(DONE_OF, event.id.to_string()).caused_by(event, trace))
}

/// Whether all of them can be written; the error names the first that cannot.
pub(crate) fn check(emit: &[Emit]) -> Result<(), String> {
    if emit.len() > EMITS_MAX {
        return Err(format!("it emits {} events; at most {EMITS_MAX} are emitted", emit.len()));
    }
    for (index, one) in emit.iter().enumerate() {
        one.check().map_err(|error| format!("emit[{index}]: {error}"))?;
    }
    Ok(())
}

/// Whether a text or a name in it holds NUL, which PostgreSQL cannot store.
pub(crate) fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}
