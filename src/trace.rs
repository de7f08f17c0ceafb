//! Traces as the W3C Trace Context has them (<https://www.w3.org/TR/trace-context/>): which trace an event belongs to, and the ids of the
//! spans that tell of its deliveries.
//!
//! No id is stored. What has none is given one that is derived from what everybody knows (SHA-256 over an event's origin, or over a
//! delivery's idempotency key and the attempt's number), so a retry, another daemon and a person with a database come to the same ids.
//! Pure: it knows no event, and not where spans go.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use ring::digest::{SHA256, digest};
use serde::Deserialize;
use uuid::Uuid;

/// The header that carries it.
pub const TRACEPARENT: &str = "traceparent";
/// The header beside it, for whoever samples; passed on as it is.
pub const TRACESTATE: &str = "tracestate";

/// What a `traceparent` of version 00 has; one of a later version has more.
const BYTES: usize = 55;
/// The only flag that means something here: whoever sent it records its own spans.
const SAMPLED: u8 = 1;

/// The id of a trace; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// The id of a span; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

/// Where something belongs: its trace, and the span that it came of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    pub id: TraceId,
    /// `None`: it is the beginning of its trace.
    pub parent: Option<SpanId>,
    /// Whether its spans are wanted.
    pub sampled: bool,
}

/// That spans are exported, of which installation, and what part of the traces that begin here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traced {
    pub installation: Uuid,
    /// From 0 to 1.
    pub sample: f64,
}

impl Trace {
    /// Reads a `traceparent`; what is not one means nothing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let (fields, rest) = bytes.split_at_checked(BYTES)?;
        if [2, 35, 52].iter().any(|&dash| fields[dash] != b'-') {
            return None;
        }
        let [version] = hex(&fields[..2])?;
        match (version, rest.first()) {
            (0xff, _) | (0, Some(_)) => return None,
            // Of a later version what is known of this one is read.
            (_, None | Some(b'-')) => {}
            _ => return None,
        }
        let [flags] = hex(&fields[53..])?;
        let (id, parent) = (TraceId::new(hex(&fields[3..35])?)?, SpanId::new(hex(&fields[36..52])?)?);
        Some(Self { id, parent: Some(parent), sampled: flags & SAMPLED != 0 })
    }

    /// The trace that the headers of an event name, which are a JSON object. Cheap where they name none, as most do.
    #[must_use]
    pub fn of_headers(headers: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Given<'a> {
            #[serde(borrow)]
            traceparent: Option<Cow<'a, str>>,
        }
        if !headers.contains(TRACEPARENT) {
            return None;
        }
        Self::parse(&serde_json::from_str::<Given<'_>>(headers).ok()?.traceparent?)
    }

    /// The trace that begins with this origin. This part of all of them is sampled, which every daemon decides in the same way.
    #[must_use]
    pub fn derived(origin: &str, sample: f64) -> Self {
        let id = TraceId(derived(origin));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 0 to 2^63")]
        let below = (sample.clamp(0.0, 1.0) * 9_223_372_036_854_775_808.0) as u64;
        let place = id.0.last_chunk().map_or(0, |half| u64::from_be_bytes(*half)) >> 1;
        Self { id, parent: None, sampled: place < below }
    }

    /// What belongs below this span of it.
    #[must_use]
    pub fn below(self, span: SpanId) -> Self {
        Self { parent: Some(span), ..self }
    }

    /// As a `traceparent`; `None` for the beginning of a trace, which has no span to name.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        let flags = if self.sampled { SAMPLED } else { 0 };
        self.parent.map(|parent| format!("00-{}-{parent}-{flags:02x}", self.id))
    }
}

/// What is passed on of the headers of an event: the context that the app gave, or with a span of our own in it.
pub(crate) fn context(
    mut given: BTreeMap<String, String>,
    own: Option<Trace>,
) -> impl Iterator<Item = (&'static str, String)> {
    if let Some(traceparent) = own.and_then(|own| own.traceparent()) {
        let the_apps = given.insert(TRACEPARENT.to_owned(), traceparent);
        // Without the trace that it was about it means nothing.
        if the_apps.is_none_or(|given| Trace::parse(&given).is_none()) {
            given.remove(TRACESTATE);
        }
    }
    [TRACEPARENT, TRACESTATE].into_iter().filter_map(move |name| Some((name, given.remove(name)?)))
}

impl TraceId {
    fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl SpanId {
    fn new(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// The span of an attempt of the delivery with this idempotency key.
    #[must_use]
    pub fn of_attempt(idempotency_key: &str, attempt: u32) -> Self {
        Self(derived(&format!("{idempotency_key}#{attempt}")))
    }

    /// The span of what belongs to that attempt and is called so.
    #[must_use]
    pub fn beside_attempt(idempotency_key: &str, attempt: u32, name: &str) -> Self {
        Self(derived(&format!("{idempotency_key}#{attempt}/{name}")))
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The beginning of the text's SHA-256; one bit is set if none is, which nobody will ever see.
fn derived<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (byte, of) in bytes.iter_mut().zip(digest(&SHA256, text.as_bytes()).as_ref()) {
        *byte = *of;
    }
    if bytes == [0; N] {
        bytes[N - 1] = 1;
    }
    bytes
}

/// Lower case only, as the specification says.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| f.write_fmt(format_args!("{byte:02x}")))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_the_specification_shows_is_read() {
        let trace = Trace::parse(GIVEN).unwrap();
        assert_eq!(trace.id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace.parent.unwrap().to_string(), "00f067aa0ba902b7");
        assert!(trace.sampled);
        assert_eq!(trace.traceparent().unwrap(), GIVEN);
        let unsampled = Trace::parse(&GIVEN.replace("-01", "-00")).unwrap();
        assert_eq!(Trace { sampled: true, ..unsampled }, trace);
        // Flags that mean nothing here, and a version that is not known yet.
        assert_eq!(Trace::parse(&GIVEN.replace("-01", "-03")), Some(trace));
        for later in [GIVEN.replacen("00", "cc", 1), GIVEN.replacen("00", "01", 1) + "-what-comes"] {
            assert_eq!(Trace::parse(&later), Some(trace), "{later}");
        }
    }

    #[test]
    fn what_the_specification_forbids_is_none() {
        let bad = [
            String::new(),
            "00".to_owned(),
            "00-aa-bb-01".to_owned(),
            GIVEN.to_uppercase(),
            GIVEN.replacen('b', "B", 1),
            GIVEN.replacen('b', "g", 1),
            GIVEN.replacen("00", "ff", 1),
            GIVEN.replacen('-', "_", 1),
            format!("{GIVEN}-00"),
            format!("{GIVEN} "),
            format!(" {GIVEN}"),
            GIVEN.replacen("00", "01", 1) + "x",
            GIVEN[..54].to_owned(),
            GIVEN.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GIVEN.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GIVEN.replace('0', "é"),
        ];
        for text in bad {
            assert_eq!(Trace::parse(&text), None, "{text:?}");
        }
    }

    #[test]
    fn headers_name_their_trace_or_none() {
        let trace = Trace::parse(GIVEN);
        assert_eq!(Trace::of_headers(&format!(r#"{{"tenant": "t1", "traceparent": "{GIVEN}"}}"#)), trace);
        // JSON may be written in many ways.
        assert_eq!(Trace::of_headers(&format!(r#"{{"traceparent": "\u0030{}"}}"#, &GIVEN[1..])), trace);
        let about = format!(r#"{{"about": "traceparent {GIVEN}"}}"#);
        for headers in ["{}", "", "null", r#"{"traceparent": null}"#, r#"{"traceparent": "00-1"}"#, &about] {
            assert_eq!(Trace::of_headers(headers), None, "{headers}");
        }
    }

    #[test]
    fn what_is_derived_is_the_same_for_everybody() {
        // As `printf %s TEXT | sha256sum` says.
        assert_eq!(Trace::derived("a:1:2", 1.0).id.to_string(), "f2bc49642ad56138f050f0b76be074c9");
        assert_eq!(SpanId::of_attempt("a:1:2:mail", 3).to_string(), "3c1f1957bb530b79");
    }

    #[test]
    fn a_part_of_the_traces_is_sampled() {
        let sampled = |sample: f64| (0..10_000).filter(|n| Trace::derived(&format!("{n}"), sample).sampled).count();
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 10_000));
        assert!((900..1100).contains(&sampled(0.1)), "{}", sampled(0.1));
        let more =
            |n: &u32| Trace::derived(&n.to_string(), 0.2).sampled || !Trace::derived(&n.to_string(), 0.1).sampled;
        assert!((0..10_000).all(|n| more(&n)), "with a larger part none is left out");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(id in any::<[u8; 16]>(), span in any::<[u8; 8]>(), sampled in any::<bool>()) {
            let (Some(id), parent @ Some(_)) = (TraceId::new(id), SpanId::new(span)) else { return Ok(()) };
            let trace = Trace { id, parent, sampled };
            prop_assert_eq!(Trace::parse(&trace.traceparent().unwrap()), Some(trace));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}", headers in "\\PC{0,80}traceparent\\PC{0,80}") {
            let _ = (Trace::parse(&text), Trace::of_headers(&text), Trace::of_headers(&headers));
        }

        #[test]
        fn what_is_read_has_the_form(text in "[0-9a-f-]{50,60}|[0-9a-fA-F]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[a-z]{0,3})?") {
            if let Some(trace) = Trace::parse(&text) {
                // All but the version and the flags are what was given.
                prop_assert_eq!(&trace.traceparent().unwrap()[2..53], &text[2..53]);
            }
        }

        #[test]
        fn spans_of_different_attempts_differ(key in "[a-z0-9:]{1,60}", one in 1u32..1000, other in 1u32..1000) {
            let ids = |n| ["queue", "settle"].map(|name| SpanId::beside_attempt(&key, n, name));
            prop_assert_eq!(SpanId::of_attempt(&key, one) == SpanId::of_attempt(&key, other), one == other);
            prop_assert!(!ids(one).contains(&SpanId::of_attempt(&key, one)));
        }
    }
}
