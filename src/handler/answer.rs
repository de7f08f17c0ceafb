//! What a handler may answer: a JSON object such as `{"outcome": "retry", "after": "5m", "error": "warming up"}`, the
//! body of an HTTP response or the stdout of a command.
//!
//! The keys are `outcome` (`"done"`, `"retry"`, `"snooze"`, `"wait"` or `"dead"`), `result` and `emit` (with done), `after` (with
//! retry and snooze), `timeout` (with wait) and `error` (with retry and dead). A key that is `null` counts as left out.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::config::duration;
use crate::emit::Emit;
use crate::outcome::{Failure, Outcome, RESULT_BYTES_MAX};

/// The longest answer that is understood, in bytes.
pub const BYTES_MAX: usize = 65_536;

/// What a number of seconds or a duration must look like.
pub(super) const DURATION_RULE: &str = "a number of seconds, at least 0, or a duration such as \"90s\" or \"1h 30m\"";

/// The longest part of an answer that an error repeats, in characters.
const QUOTE_CHARS_MAX: usize = 100;

/// What a text says about the attempt that wrote it.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It says how the attempt ended.
    Given(Outcome),
    /// It does not, so the HTTP status or the exit code does. A text that is JSON and no larger than
    /// [`RESULT_BYTES_MAX`] is the result of a success.
    Absent { result: Option<Value> },
}

impl Answer {
    /// How an attempt ended that succeeded by its status or exit code and gave this answer.
    #[must_use]
    pub fn after_success(self) -> Outcome {
        match self {
            Answer::Given(outcome) => outcome,
            Answer::Absent { result } => Outcome::Done { result, emit: Vec::new() },
        }
    }
}

/// The keys of the answer, each value unread. Values that nobody asks for are never built, and skipping over one takes
/// no stack however deep it is; `serde_json` refuses to build one that is nested deeper than 128 levels.
pub(super) type Fields<'a> = BTreeMap<String, &'a RawValue>;

/// Reads an answer.
///
/// An object with `outcome` means to be an answer, so anything wrong with it is a failed attempt whose error tells the
/// handler's author what to change. Everything else is no answer: a handler need not know of outboxd.
#[must_use]
pub fn parse(bytes: &[u8]) -> Answer {
    let Some(text) = str::from_utf8(bytes).ok().filter(|text| text.len() <= BYTES_MAX) else {
        return Answer::Absent { result: None };
    };
    match serde_json::from_str::<Fields<'_>>(text) {
        Ok(fields) if fields.contains_key("outcome") => {
            Answer::Given(read(fields).unwrap_or_else(|error| Outcome::Retry {
                after: None,
                failure: Failure::new(error).with_response(text),
            }))
        }
        _ => Answer::Absent { result: plain_result(text) },
    }
}

fn plain_result(text: &str) -> Option<Value> {
    let text = text.trim_ascii();
    if text.len() <= RESULT_BYTES_MAX { serde_json::from_str(text).unwrap_or_default() } else { None }
}

/// The outcome these fields stand for, or what is wrong with them.
pub(super) fn read(mut fields: Fields<'_>) -> Result<Outcome, String> {
    let outcome = fields.get("outcome").map_or("", |raw| raw.get()).to_owned();
    fields.retain(|name, value| name != "outcome" && value.get() != "null");
    let name = serde_json::from_str::<String>(&outcome).unwrap_or_default();
    match name.as_str() {
        "done" => {
            only(&fields, &name, &["result", "emit"])?;
            Ok(Outcome::Done { result: result(&fields)?, emit: emit(&fields)? })
        }
        "retry" => {
            only(&fields, &name, &["after", "error"])?;
            Ok(Outcome::Retry { after: duration(&fields, "after")?, failure: failure(&fields, &name)? })
        }
        "snooze" => {
            only(&fields, &name, &["after"])?;
            Ok(Outcome::Snooze { after: duration(&fields, "after")? })
        }
        "wait" => {
            only(&fields, &name, &["timeout"])?;
            Ok(Outcome::Wait { timeout: duration(&fields, "timeout")? })
        }
        "dead" => {
            only(&fields, &name, &["error"])?;
            Ok(Outcome::Dead { failure: failure(&fields, &name)? })
        }
        _ => Err(format!(
            "the answer's \"outcome\" is {}; it must be \"done\", \"retry\", \"snooze\", \"wait\" or \"dead\"",
            quote(&outcome)
        )),
    }
}

/// Unknown keys are refused: a handler that asks for something which does not happen has failed, not succeeded.
fn only(fields: &Fields<'_>, outcome: &str, allowed: &[&str]) -> Result<(), String> {
    match fields.keys().find(|name| !allowed.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(format!(
            "the answer has the key \"{}\"; beside \"outcome\": \"{outcome}\" this version knows only \"{}\"",
            quote(name),
            allowed.join("\" and \"")
        )),
    }
}

fn result(fields: &Fields<'_>) -> Result<Option<Value>, String> {
    let Some(raw) = fields.get("result") else { return Ok(None) };
    serde_json::from_str(raw.get()).map(Some).map_err(|error| {
        format!("the answer's \"result\" is {}; it must be JSON that can be kept: {error}", quote(raw.get()))
    })
}

/// The events to emit; whether each can be written is checked when the outcome is settled.
fn emit(fields: &Fields<'_>) -> Result<Vec<Emit>, String> {
    let Some(raw) = fields.get("emit") else { return Ok(Vec::new()) };
    let objects: Vec<Fields<'_>> = serde_json::from_str(raw.get()).map_err(|_| {
        format!(
            "the answer's \"emit\" is {}; it must be an array of objects such as {{\"topic\": \"order.paid\", \"payload\": {{}}}}",
            quote(raw.get())
        )
    })?;
    let of = |(index, fields)| emit_one(fields).map_err(|error| format!("the answer's emit[{index}] {error}"));
    objects.into_iter().enumerate().map(of).collect()
}

fn emit_one(mut fields: Fields<'_>) -> Result<Emit, String> {
    const KEYS: &[&str] = &["topic", "payload", "key", "headers", "delay", "dedup_key"];
    if let Some(name) = fields.keys().find(|name| !KEYS.contains(&name.as_str())) {
        return Err(format!("has the key \"{}\"; it knows only \"{}\"", quote(name), KEYS.join("\", \"")));
    }
    let payload = fields.remove("payload").map_or("null", RawValue::get).to_owned();
    fields.retain(|_, value| value.get() != "null");
    let text = |name: &str| {
        let read = |raw: &&RawValue| {
            serde_json::from_str::<String>(raw.get())
                .map_err(|_| format!("has the {name} {}; it must be a text", quote(raw.get())))
        };
        fields.get(name).map(read).transpose()
    };
    let mut emit = Emit::of_json(text("topic")?.ok_or("has no topic")?, payload);
    emit.key = text("key")?;
    emit.dedup_key = text("dedup_key")?;
    if let Some(raw) = fields.get("delay") {
        let rule = || format!("has the delay {}; it must be {DURATION_RULE}", quote(raw.get()));
        emit.delay = Some(as_duration(raw).ok_or_else(rule)?);
    }
    if let Some(raw) = fields.get("headers") {
        emit.headers = serde_json::from_str(raw.get())
            .map_err(|_| format!("has the headers {}; they must be an object of texts", quote(raw.get())))?;
    }
    Ok(emit)
}

fn failure(fields: &Fields<'_>, outcome: &str) -> Result<Failure, String> {
    let Some(raw) = fields.get("error") else {
        return Ok(Failure::new(format!("the handler answered \"{outcome}\" without an error")));
    };
    serde_json::from_str::<String>(raw.get())
        .map(Failure::new)
        .map_err(|_| format!("the answer's \"error\" is {}; it must be a text", quote(raw.get())))
}

fn duration(fields: &Fields<'_>, name: &str) -> Result<Option<Duration>, String> {
    let Some(raw) = fields.get(name) else { return Ok(None) };
    as_duration(raw)
        .map(Some)
        .ok_or_else(|| format!("the answer's \"{name}\" is {}; it must be {DURATION_RULE}", quote(raw.get())))
}

fn as_duration(raw: &RawValue) -> Option<Duration> {
    match serde_json::from_str(raw.get()) {
        Ok(Value::Number(seconds)) => seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        Ok(Value::String(text)) => duration::parse(&text).ok(),
        _ => None,
    }
}

/// The beginning of `text`, short enough that an error also has room for the rule.
pub(crate) fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The outcome with what the other side said, if it is a failure that does not have it already.
pub(super) fn with_response(outcome: Outcome, response: &str) -> Outcome {
    let add = |failure: Failure| match failure.response {
        Some(_) => failure,
        None => failure.with_response(response),
    };
    match outcome {
        Outcome::Retry { after, failure } => Outcome::Retry { after, failure: add(failure) },
        Outcome::Dead { failure } => Outcome::Dead { failure: add(failure) },
        Outcome::Gone { failure } => Outcome::Gone { failure: add(failure) },
        other => other,
    }
}
