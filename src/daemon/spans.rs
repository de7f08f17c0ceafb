//! What is told of an attempt to whoever follows its trace: a span for its time in the queue, one for itself, one for settling it. Pure:
//! it knows neither where they go nor what time it is.
//!
//! Names and attributes are those of OpenTelemetry's messaging conventions
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>). No payload, no header and no response is in them.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use crate::event::{Event, EventId};
use crate::trace::{SpanId, Trace, Traced};

/// Spans of one attempt.
pub(super) const SPANS: usize = 3;
/// The longest error that is told, in bytes; the rest stands in `outbox.attempt`.
const ERROR_BYTES_MAX: usize = 1024;

/// What is known of an attempt when it begins.
#[derive(Debug, Clone)]
pub struct Begun {
    topic: String,
    /// The delivery's idempotency key, of which the ids are made.
    key: String,
    trace: Trace,
    queued: Queued,
}

/// Since when it could have begun.
#[derive(Debug, Clone, Copy)]
pub(super) enum Queued {
    /// Since its event was created, by PostgreSQL's clock.
    Created(Timestamp),
    /// Since it was due.
    Due(Instant),
}

/// An attempt that was settled.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) begun: Begun,
    pub(super) event: EventId,
    pub(super) handler: Arc<str>,
    pub(super) attempt: u32,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) written: Instant,
    /// As in `outbox.attempt`.
    pub(super) outcome: &'static str,
    pub(super) error: Option<String>,
    /// Somebody else had settled the delivery.
    pub(super) refused: bool,
}

/// Below which span the attempt of a delivery does its work; `None`: no spans are exported, or its trace does not want any. Then what the
/// app gave is passed on as it is.
#[must_use]
pub(super) fn own(traced: Traced, trace: Trace, event: &Event, handler: &str, attempt: u32) -> Option<Trace> {
    let wanted = trace.sampled || trace.parent.is_none();
    let key = || event.idempotency_key(traced.installation, handler);
    wanted.then(|| trace.below(SpanId::of_attempt(&key(), attempt)))
}

impl Begun {
    /// `None`: the trace is not sampled.
    #[must_use]
    pub(super) fn new(traced: Traced, trace: Trace, event: &Event, handler: &str, queued: Queued) -> Option<Self> {
        let key = || event.idempotency_key(traced.installation, handler);
        trace.sampled.then(|| Self { topic: event.topic.clone(), key: key(), trace, queued })
    }
}

impl Settled {
    /// `clock`: what the time was at that moment.
    pub(super) fn spans(&self, clock: (Instant, Timestamp)) -> [Span; SPANS] {
        let Self { begun: Begun { key, trace, queued, .. }, attempt, began, ended, written, .. } = self;
        let at = |instant: Instant| nanos(instant, clock);
        let began = at(*began);
        let since = match *queued {
            Queued::Created(created) => u64::try_from(created.as_nanosecond()).unwrap_or_default(),
            Queued::Due(due) => at(due),
        };
        let own = SpanId::of_attempt(key, *attempt);
        let id = |name| SpanId::beside_attempt(key, *attempt, name);
        let parent = trace.parent;
        let queue = self.span("queue", SpanKind::Internal, id("queue"), parent, (since.min(began), began));
        let mut process = self.span("process", SpanKind::Consumer, own, parent, (began, at(*ended)));
        process.attributes.push(text("outboxd.outcome", self.outcome));
        if *attempt > 1 {
            let before = SpanId::of_attempt(key, *attempt - 1);
            let (trace_id, span_id) = (trace.id.bytes().to_vec(), before.bytes().to_vec());
            process.links.push(Link { trace_id, span_id, ..Link::default() });
        }
        if let Some(error) = &self.error {
            fail(&mut process, self.outcome, error);
        }
        let mut settle = self.span("settle", SpanKind::Client, id("settle"), Some(own), (at(*ended), at(*written)));
        if self.refused {
            fail(&mut settle, "refused", "somebody else had settled the delivery");
        }
        [queue, process, settle]
    }

    fn span(&self, name: &str, kind: SpanKind, id: SpanId, parent: Option<SpanId>, (from, to): (u64, u64)) -> Span {
        let mut attributes = vec![
            text("messaging.system", "outboxd"),
            text("messaging.operation.name", name),
            text("messaging.destination.name", &self.begun.topic),
            text("messaging.consumer.group.name", &self.handler),
            text("messaging.message.id", &self.event.to_string()),
            value("outboxd.attempt", Value::IntValue(self.attempt.into())),
        ];
        if kind != SpanKind::Internal {
            attributes.push(text("messaging.operation.type", name));
        }
        Span {
            trace_id: self.begun.trace.id.bytes().to_vec(),
            span_id: id.bytes().to_vec(),
            parent_span_id: parent.map_or_else(Vec::new, |parent| parent.bytes().to_vec()),
            name: format!("{name} {}", self.begun.topic),
            kind: kind.into(),
            start_time_unix_nano: from,
            end_time_unix_nano: to.max(from),
            attributes,
            // It is sampled.
            flags: 1,
            ..Span::default()
        }
    }
}

fn fail(span: &mut Span, kind: &str, error: &str) {
    let mut end = error.len().min(ERROR_BYTES_MAX);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    span.attributes.push(text("error.type", kind));
    span.status = Some(Status { message: error[..end].to_owned(), code: StatusCode::Error.into() });
}

pub(super) fn text(key: &str, text: &str) -> KeyValue {
    value(key, Value::StringValue(text.to_owned()))
}

fn value(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn nanos(instant: Instant, (now, clock): (Instant, Timestamp)) -> u64 {
    let ago = i128::try_from(now.saturating_duration_since(instant).as_nanos()).unwrap_or(i128::MAX);
    u64::try_from(clock.as_nanosecond().saturating_sub(ago)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn event(headers: &str) -> Event {
        Event {
            id: EventId(42),
            topic: "order.placed".to_owned(),
            key: None,
            payload: "{}".to_owned(),
            headers: headers.to_owned(),
            created_at: "2026-03-01T12:30:00.123456Z".parse().unwrap(),
        }
    }

    const TRACED: Traced = Traced { installation: uuid::Uuid::nil(), sample: 1.0 };

    fn settled(trace: Trace, attempt: u32) -> Settled {
        let event = event("{}");
        let began = Instant::now();
        let queued = Queued::Created(event.created_at);
        let second = Duration::from_secs(1);
        Settled {
            begun: Begun::new(TRACED, trace, &event, "mail", queued).unwrap(),
            event: event.id,
            handler: "mail".into(),
            attempt,
            began,
            ended: began + second,
            written: began + 2 * second,
            outcome: "retry",
            error: Some("é".repeat(1000)),
            refused: false,
        }
    }

    #[test]
    fn the_spans_of_an_attempt_follow_each_other() {
        let trace = Trace::parse(GIVEN).unwrap();
        let first = settled(trace, 1);
        let clock = (first.written, "2026-03-01T12:30:10Z".parse().unwrap());
        let [queue, process, settle] = first.spans(clock);
        assert_eq!(queue.end_time_unix_nano, process.start_time_unix_nano);
        assert_eq!(process.end_time_unix_nano, settle.start_time_unix_nano);
        assert_eq!(settle.end_time_unix_nano, u64::try_from(clock.1.as_nanosecond()).unwrap());
        assert_eq!(settle.end_time_unix_nano - process.start_time_unix_nano, 2_000_000_000);
        assert_eq!(process.start_time_unix_nano - queue.start_time_unix_nano, 7_876_544_000);
        assert_eq!((&queue.parent_span_id, &process.parent_span_id), (&process.parent_span_id, &GIVEN_PARENT.to_vec()));
        assert_eq!((&settle.parent_span_id, process.links.len()), (&process.span_id, 0));
        let status = process.status.unwrap();
        assert_eq!((status.code(), status.message.len()), (StatusCode::Error, ERROR_BYTES_MAX));
        let [_, again, _] = settled(trace, 2).spans(clock);
        assert_eq!(again.links[0].span_id, process.span_id);
        assert_ne!(again.span_id, process.span_id);
    }

    const GIVEN_PARENT: [u8; 8] = [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];

    #[test]
    fn who_wants_no_spans_gets_none_and_keeps_what_he_gave() {
        let unsampled = Trace::parse(&GIVEN.replace("-01", "-00")).unwrap();
        let queued = Queued::Due(Instant::now());
        assert_eq!(own(TRACED, unsampled, &event("{}"), "mail", 1), None);
        assert!(Begun::new(TRACED, unsampled, &event("{}"), "mail", queued).is_none());
        // One that begins here says that it is not sampled.
        let begins = Trace::derived("x", 0.0);
        assert!(Begun::new(TRACED, begins, &event("{}"), "mail", queued).is_none());
        let own = own(TRACED, begins, &event("{}"), "mail", 1).unwrap().traceparent().unwrap();
        assert!(own.starts_with(&format!("00-{}-", begins.id)) && own.ends_with("-00"), "{own}");
    }

    #[test]
    fn a_replay_has_spans_of_its_own() {
        let trace = Trace::parse(GIVEN).unwrap();
        let own = |headers: &str| own(TRACED, trace, &event(headers), "mail", 1).unwrap();
        assert_ne!(own("{}"), own(r#"{"outbox-replay": "1"}"#));
        assert_eq!(own("{}").id, trace.id);
    }
}
