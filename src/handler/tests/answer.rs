//! What an answer means.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::answer::{Answer, BYTES_MAX, parse};
use super::retried;
use crate::emit::Emit;
use crate::outcome::{Failure, Outcome, RESULT_BYTES_MAX};

fn given(text: &str) -> Outcome {
    match parse(text.as_bytes()) {
        Answer::Given(outcome) => outcome,
        Answer::Absent { .. } => panic!("not an answer: {text}"),
    }
}

fn plain(text: impl AsRef<[u8]>) -> Option<Value> {
    match parse(text.as_ref()) {
        Answer::Absent { result } => result,
        Answer::Given(outcome) => panic!("an answer: {outcome:?}"),
    }
}

/// The error of an answer that has `outcome` but is wrong.
fn refused(text: &str) -> String {
    let (after, failure) = retried(given(text));
    assert_eq!(after, None);
    assert!(failure.response.is_some(), "the operator sees the answer itself");
    failure.error
}

#[test]
fn each_outcome_is_understood() {
    let failure = || Failure::new("warming up");
    let after = Duration::from_millis(1500);
    for (text, outcome) in [
        (r#"{"outcome": "done"}"#, Outcome::done()),
        (r#"{"outcome": "done", "result": [1, null]}"#, Outcome::done_with(json!([1, null]))),
        (r#"{"outcome": "retry", "error": "warming up"}"#, Outcome::Retry { after: None, failure: failure() }),
        (
            r#"{"error": "warming up", "after": 1.5, "outcome": "retry"}"#,
            Outcome::Retry { after: Some(after), failure: failure() },
        ),
        (r#"{"outcome": "snooze", "after": "1500ms"}"#, Outcome::Snooze { after: Some(after) }),
        (r#"{"outcome": "wait", "timeout": 1.5}"#, Outcome::Wait { timeout: Some(after) }),
        (r#"{"outcome": "wait", "timeout": null}"#, Outcome::Wait { timeout: None }),
        (r#"{"outcome": "snooze"}"#, Outcome::Snooze { after: None }),
        (
            r#"{"outcome": "done", "emit": [{"topic": "a.b", "payload": {"n": [1, null]}, "key": "k", "headers": {"h": "v"},
                                             "delay": 1.5, "dedup_key": "d"}, {"topic": "b", "key": null}]}"#,
            Outcome::Done {
                result: None,
                emit: vec![
                    Emit::of_json("a.b".to_owned(), r#"{"n": [1, null]}"#.to_owned())
                        .key("k")
                        .header("h", "v")
                        .delay(after)
                        .dedup_key("d"),
                    Emit::new("b", Value::Null),
                ],
            },
        ),
        (r#"{"outcome": "dead", "error": "warming up"}"#, Outcome::Dead { failure: failure() }),
    ] {
        assert_eq!(given(text), outcome, "{text}");
    }
}

#[test]
fn a_failure_without_an_error_says_where_it_comes_from() {
    let (_, failure) = retried(given(r#"{"outcome": "retry"}"#));
    assert_eq!(failure.error, "the handler answered \"retry\" without an error");
}

#[test]
fn a_key_that_is_null_is_left_out() {
    let text = r#"{"outcome": "done", "result": null, "after": null, "error": null}"#;
    assert_eq!(given(text), Outcome::done());
}

#[test]
fn durations_are_numbers_of_seconds_or_texts() {
    for (after, seconds) in
        [("0", 0), ("90", 90), (r#""90s""#, 90), (r#""1h 30m""#, 5400), (r#""PT2M""#, 120), (r#""1 day""#, 86_400)]
    {
        let outcome = given(&format!(r#"{{"outcome": "snooze", "after": {after}}}"#));
        assert_eq!(outcome, Outcome::Snooze { after: Some(Duration::from_secs(seconds)) }, "{after}");
    }
}

#[test]
fn a_wrong_duration_is_a_failed_attempt_that_names_it() {
    for after in ["-1", "1e300", "1e999", "true", r#""soon""#, r#""-5s""#, r#""1 month""#, r#""""#, "[]"] {
        let error = refused(&format!(r#"{{"outcome": "retry", "after": {after}}}"#));
        assert!(error.contains(&format!("\"after\" is {after}; it must be a number of seconds")), "{error}");
    }
    assert!(
        refused(r#"{"outcome": "wait", "timeout": "soon"}"#).contains("\"timeout\" is \"soon\"; it must be a number")
    );
}

#[test]
fn an_unknown_outcome_is_a_failed_attempt_that_names_it() {
    for outcome in [r#""ok""#, r#""Done""#, "1", "null", r#"["done"]"#] {
        let error = refused(&format!(r#"{{"outcome": {outcome}}}"#));
        assert!(error.starts_with(&format!("the answer's \"outcome\" is {outcome}; it must be \"done\"")), "{error}");
    }
}

#[test]
fn a_key_that_does_nothing_is_refused_rather_than_ignored() {
    for (text, key) in [
        (r#"{"outcome": "done", "emitted": []}"#, "emitted"),
        (r#"{"outcome": "retry", "emit": []}"#, "emit"),
        (r#"{"outcome": "done", "after": 5}"#, "after"),
        (r#"{"outcome": "dead", "result": 5}"#, "result"),
        (r#"{"outcome": "wait", "after": 5}"#, "after"),
    ] {
        let error = refused(text);
        assert!(error.contains(&format!("the answer has the key \"{key}\"")), "{error}");
    }
}

#[test]
fn an_error_that_is_no_text_is_refused() {
    assert!(refused(r#"{"outcome": "dead", "error": {"code": 5}}"#).contains("it must be a text"));
}

#[test]
fn the_rule_is_told_however_long_the_value_is() {
    let error = refused(&format!(r#"{{"outcome": "{}"}}"#, "é".repeat(20_000)));
    assert!(error.contains("it must be \"done\""), "{error}");
}

#[test]
fn other_json_is_the_result_and_other_text_is_not() {
    assert_eq!(plain("42\n"), Some(json!(42)));
    assert_eq!(plain(r#"{"id": 7}"#), Some(json!({"id": 7})));
    assert_eq!(plain(r#"["outcome"]"#), Some(json!(["outcome"])));
    for text in ["", " ", "null", "ok", "{\"outcome\": \"done\"", "{\"outcome\": \"done\"} and more"] {
        assert_eq!(plain(text), None, "{text:?}");
    }
    assert_eq!(plain(b"\"\xff\""), None);
}

#[test]
fn what_is_too_large_is_neither_answer_nor_result() {
    assert_eq!(plain(format!("\"{}\"", "x".repeat(RESULT_BYTES_MAX))), None);
    assert_eq!(plain(format!(r#"{{"outcome": "done"}}{}"#, " ".repeat(BYTES_MAX))), None);
}

#[test]
fn deep_json_is_an_error_and_not_a_crash() {
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    assert_eq!(plain(&deep), None);
    let error = refused(&format!(r#"{{"outcome": "done", "result": {deep}}}"#));
    assert!(error.contains("\"result\" is [[["), "{error}");
    assert!(error.contains("recursion limit"), "{error}");
}

proptest! {
    #[test]
    fn no_text_hurts(text in r#"[ \[\]{}":,a-z0-9\\]{0,80}"#, bytes: Vec<u8>) {
        let _ = parse(text.as_bytes());
        let _ = parse(&bytes);
    }

    #[test]
    fn no_object_with_an_outcome_hurts(outcome in r#""(done|retry|snooze|wait|dead|x)"|null|1"#, key in "after|error|result|timeout|emit", value in r#"[\[{"]?[-0-9a-z. ]{0,10}["}\]]?"#) {
        let _ = parse(format!(r#"{{"outcome": {outcome}, "{key}": {value}}}"#).as_bytes());
    }
}
