//! Many events in one call: how they are written, and the outcome of each.
//!
//! They are an array of CloudEvents in the JSON batch format
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md#4-json-batch-format>). The answer is an object
//! whose `outcomes` has an answer for each event that did not end as the call did, by its id:
//! `{"outcomes": {"17": {"outcome": "retry", "error": "warming up"}}}`; or one answer with `outcome` that counts for all.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::answer::{self, Fields, quote, read};
use crate::event::Attempt;
use crate::outcome::{Failure, Outcome};
use crate::trace;

/// What HTTP calls it.
pub(super) const MEDIA_TYPE: &str = "application/cloudevents-batch+json";
/// The longest answer that is understood, in bytes.
pub(super) const BYTES_MAX: usize = 16 * answer::BYTES_MAX;

/// The source that all events of an installation have.
pub(super) fn source(attempt: &Attempt) -> String {
    format!("/outboxd/{}", attempt.installation)
}

/// The W3C trace context: what the app gave, or with the attempt's own span in it.
pub(super) fn trace_context(attempt: &Attempt) -> impl Iterator<Item = (&'static str, String)> {
    trace::context(attempt.event.headers(), attempt.trace)
}

/// The events of a batch as JSON text.
pub(super) fn body(attempts: &[Attempt]) -> String {
    let weight = attempts.iter().map(|attempt| attempt.event.weight() + 512).sum();
    let mut body = String::with_capacity(weight);
    for attempt in attempts {
        body.push(if body.is_empty() { '[' } else { ',' });
        let attributes = Value::Object(attributes(attempt)).to_string();
        // The payload is JSON as PostgreSQL prints it. It goes as it is: who reads a number may change it.
        body.push_str(attributes.strip_suffix('}').unwrap_or(&attributes));
        body.push_str(",\"data\":");
        body.push_str(&attempt.event.payload);
        body.push('}');
    }
    body.push(']');
    body
}

/// What a header says of an event that is handed over by itself.
fn attributes(attempt: &Attempt) -> Map<String, Value> {
    let event = &*attempt.event;
    let texts = [
        ("specversion", "1.0".to_owned()),
        ("id", event.id.to_string()),
        ("type", event.topic.clone()),
        ("source", source(attempt)),
        ("time", event.created_at.to_string()),
        ("datacontenttype", "application/json".to_owned()),
        ("idempotencykey", attempt.idempotency_key()),
    ];
    let key = event.key.clone().filter(|key| !key.is_empty()).map(|key| ("subject", key));
    let callback = attempt.callback.clone().map(|url| ("outboxcallback", url));
    let texts = texts.into_iter().chain(key).chain(callback).chain(trace_context(attempt));
    let mut attributes: Map<String, Value> = texts.map(|(name, text)| (name.to_owned(), Value::String(text))).collect();
    attributes.insert("outboxattempt".to_owned(), attempt.number.into());
    if event.replay() > 0 {
        attributes.insert("outboxreplay".to_owned(), event.replay().into());
    }
    attributes
}

/// How the attempts of a call ended that succeeded by its status or exit code and gave this answer.
pub(super) fn outcomes(bytes: &[u8], attempts: &[Attempt]) -> Vec<Outcome> {
    let failed = |error: String| {
        let said = String::from_utf8_lossy(&bytes[..bytes.len().min(answer::BYTES_MAX)]);
        Outcome::Retry { after: None, failure: Failure::new(error).with_response(said) }
    };
    let all = |outcome: Outcome| vec![outcome; attempts.len()];
    if bytes.len() > BYTES_MAX {
        return all(failed(format!("the answer for a batch has more than {BYTES_MAX} bytes")));
    }
    let fields = str::from_utf8(bytes).ok().and_then(|text| serde_json::from_str::<Fields<'_>>(text).ok());
    let fields = fields.unwrap_or_default();
    // As in every answer, what is null counts as left out.
    match (fields.contains_key("outcome"), fields.get("outcomes").filter(|raw| raw.get() != "null")) {
        (false, None) => all(Outcome::done()),
        (false, Some(outcomes)) => each(outcomes.get(), attempts).unwrap_or_else(|error| all(failed(error))),
        (true, None) => all(of_all(fields).unwrap_or_else(failed)),
        (true, Some(_)) => {
            all(failed("the answer has \"outcome\" and \"outcomes\"; the first counts for the whole batch".to_owned()))
        }
    }
}

/// One answer for the whole batch.
fn of_all(fields: Fields<'_>) -> Result<Outcome, String> {
    match fields.keys().find(|name| matches!(name.as_str(), "result" | "emit")) {
        Some(name) => {
            Err(format!("the answer for a batch has \"{name}\" and does not say of which event; use \"outcomes\""))
        }
        None => read(fields),
    }
}

/// An answer for each event, by its id; those without one are done.
fn each(text: &str, attempts: &[Attempt]) -> Result<Vec<Outcome>, String> {
    let mut by_id: BTreeMap<String, Fields<'_>> = serde_json::from_str(text).map_err(|_| {
        format!(
            "the answer's \"outcomes\" is {}; it must be an object such as {{\"17\": {{\"outcome\": \"retry\"}}}}",
            quote(text)
        )
    })?;
    let outcomes = attempts
        .iter()
        .map(|attempt| match by_id.remove(&attempt.event.id.to_string()) {
            None => Ok(Outcome::done()),
            Some(fields) => read(fields).map_err(|error| format!("event {}: {error}", attempt.event.id)),
        })
        .collect::<Result<Vec<Outcome>, String>>()?;
    match by_id.keys().next() {
        None => Ok(outcomes),
        Some(id) => Err(format!("the answer's \"outcomes\" has {}, which is no event of the batch", quote(id))),
    }
}
