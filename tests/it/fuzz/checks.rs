//! What must hold for every input, whatever it is: a panic in one of these is a bug. `tests/fuzz` runs them on inputs
//! that the fuzzer invents, `tests/it/fuzz.rs` on the seeds and on inputs of a known shape.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use outboxd::config::{Kind, Secret, SigningKey, duration};
use outboxd::handler::answer::{self, Answer};
use outboxd::handler::http::retry_after;
use outboxd::outcome::{RESULT_BYTES_MAX, TEXT_BYTES_MAX, bounded, excerpt};
use outboxd::topic::{Pattern, TOPIC_BYTES_MAX};
use outboxd::{Config, Failure, Outcome};
use serde_json::Value;

/// The text of a signing key of 32 zero bytes.
const KEY: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// A configuration is refused with lines and rules, or written out and read back as the same.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let env = |name: &str| match name {
        "MISSING" => None,
        "KEY" => Some(KEY.to_owned()),
        _ => Some("value".to_owned()),
    };
    let config = match Config::parse(text, "file", &env) {
        Ok(config) => hidden(config),
        Err(errors) => {
            assert!(!errors.errors.is_empty(), "refused without a reason");
            for error in &errors.errors {
                assert!((1..=text.lines().count().max(1) + 1).contains(&error.line), "no such line: {error}");
                assert!(!error.message.is_empty(), "line {} breaks no rule", error.line);
            }
            let shown = errors.to_string();
            assert_eq!(shown.lines().count(), errors.errors.len(), "one line for each: {shown}");
            assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "a terminal would obey {shown:?}");
            return;
        }
    };
    // The same key twice is refused.
    let written = config.to_toml().replace(", \"***\"", "").replace("secret = [\"***\"]", "secret = \"***\"");
    let written = written.replace("secret = \"***\"", &format!("secret = \"{KEY}\""));
    match Config::parse(&written, "written", &env) {
        Ok(read) => assert_eq!(hidden(read), config, "{written}"),
        Err(errors) => panic!("{errors}\n{written}"),
    }
}

/// The configuration with every secret as it is read back.
fn hidden(mut config: Config) -> Config {
    let secret = || Secret::new("***".to_owned());
    config.daemon.database_url = config.daemon.database_url.map(|_| secret());
    if let Some(traces) = &mut config.traces {
        traces.headers.values_mut().for_each(|value| *value = secret());
    }
    for handler in &mut config.handlers {
        match &mut handler.kind {
            Kind::Http(http) => {
                http.secrets.truncate(1);
                http.secrets.fill(SigningKey::new(vec![0; 32]));
                http.headers.values_mut().for_each(|value| *value = secret());
            }
            Kind::Command(command) => command.env.values_mut().for_each(|value| *value = secret()),
            _ => {}
        }
    }
    config
}

/// The first line is a pattern, the rest a topic: both as the rule in words says it.
pub fn pattern(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (pattern, topic) = text.split_once('\n').unwrap_or((text, ""));
    let is_word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_:-".contains(c));
    let allowed = pattern.split('.').all(|word| matches!(word, "*" | "#") || is_word(word));
    match pattern.parse::<Pattern>() {
        Ok(parsed) => {
            assert!(allowed && pattern.len() <= TOPIC_BYTES_MAX);
            assert_eq!(parsed.to_string(), pattern);
            let words = |text: &'_ str| text.split('.').map(ToOwned::to_owned).collect::<Vec<_>>();
            let expected = selects(&words(pattern), &words(topic), &mut HashSet::new());
            assert_eq!(parsed.matches(topic), expected, "{pattern} against {topic:?}");
        }
        Err(error) => {
            assert!(!allowed || pattern.len() > TOPIC_BYTES_MAX, "{pattern:?} is refused: {error}");
            assert!(!error.to_string().is_empty());
        }
    }
}

/// Tries everything `#` may stand for; remembers what led nowhere, by the lengths of what was left.
fn selects(pattern: &[String], topic: &[String], failed: &mut HashSet<(usize, usize)>) -> bool {
    if failed.contains(&(pattern.len(), topic.len())) {
        return false;
    }
    let selected = match (pattern.split_first(), topic.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((word, rest)), _) if word == "#" => (0..=topic.len()).any(|n| selects(rest, &topic[n..], failed)),
        (Some((word, words)), Some((first, rest))) => (word == "*" || word == first) && selects(words, rest, failed),
        (Some(_), None) => false,
    };
    if !selected {
        failed.insert((pattern.len(), topic.len()));
    }
    selected
}

/// Whatever a handler says is understood as far as it goes, and can be stored.
pub fn answer(bytes: &[u8]) {
    let parsed = answer::parse(bytes);
    if bytes.len() > answer::BYTES_MAX {
        assert_eq!(parsed, Answer::Absent { result: None });
    }
    match parsed {
        Answer::Absent { result: None } => {}
        Answer::Absent { result: Some(result) } => {
            assert!(bytes.trim_ascii().len() <= RESULT_BYTES_MAX);
            assert_eq!(serde_json::from_slice::<Value>(bytes.trim_ascii()).ok().as_ref(), Some(&result));
            can_be_kept(result);
        }
        Answer::Given(outcome) => match outcome {
            Outcome::Done { result, .. } => result.map(can_be_kept).unwrap_or_default(),
            Outcome::Retry { failure, .. } | Outcome::Dead { failure } => is_bounded(&failure),
            Outcome::Snooze { .. } | Outcome::Wait { .. } => {}
            other => panic!("no handler can answer {other:?}"),
        },
    }
}

fn can_be_kept(result: Value) {
    let kept = bounded(result);
    let text = kept.to_string();
    // A backslash may stand for itself in front of `u0000`.
    let has_nul = text.replace(r"\\", "").contains(r"\u0000");
    assert!(text.len() <= RESULT_BYTES_MAX && !has_nul, "{text}");
    assert_eq!(bounded(kept.clone()), kept);
}

fn is_bounded(failure: &Failure) {
    for text in [Some(&failure.error), failure.response.as_ref()].into_iter().flatten() {
        assert!(text.len() <= TEXT_BYTES_MAX && !text.contains('\0'), "{text}");
    }
    assert!(!failure.error.is_empty() || failure.response.is_none());
}

/// Durations, and the `Retry-After` of a response.
pub fn waiting(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let now = Timestamp::UNIX_EPOCH + Duration::from_hours(24 * 365 * 50);
    let after = retry_after(text, now);
    if (1..=19).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()) {
        assert_eq!(after, text.parse().ok().map(Duration::from_secs));
    }
    match duration::parse(text) {
        Ok(read) => assert_eq!(duration::parse(&duration::format(read)), Ok(read), "{text}"),
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
}

/// What is kept of a text is its beginning, without NUL, and a note if there was more. Keeping it again changes nothing.
pub fn kept(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let kept = excerpt(&text);
    assert!(kept.len() <= TEXT_BYTES_MAX && !kept.contains('\0'));
    assert!(excerpt(&kept) == kept, "not an excerpt of itself");
    let clean = text.replace('\0', "\u{fffd}");
    let note = format!("… ({} bytes in all)", text.len());
    let is_cut = || kept.strip_suffix(&note).is_some_and(|beginning| clean.starts_with(beginning));
    assert!(kept == clean || is_cut(), "neither the text nor its beginning and a note");
}
