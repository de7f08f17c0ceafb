//! How a batch is written, and how its answer is read.

use proptest::prelude::*;
use serde_json::Value;

use super::super::batch::{self, BYTES_MAX};
use super::{attempt, event, retried};
use crate::event::{Attempt, Event, EventId};
use crate::outcome::Outcome;

fn attempts(events: impl IntoIterator<Item = Event>) -> Vec<Attempt> {
    let with_id = |(id, event): (i64, Event)| attempt(Event { id: EventId(id), ..event });
    (1..).zip(events).map(with_id).collect()
}

#[test]
fn a_payload_goes_as_postgresql_prints_it() {
    // Who reads these as numbers makes others of them.
    let payload = r#"{"price": 1.10, "id": 12345678901234567890123, "deep": {"}": "]"}}"#;
    let body = batch::body(&attempts([Event { payload: payload.to_owned(), ..event() }, event()]));
    assert!(body.contains(&format!("\"data\":{payload}}}")), "{body}");
    let read: Vec<Value> = serde_json::from_str(&body).unwrap();
    assert_eq!((read.len(), &read[1]["data"]["name"]), (2, &Value::from("Ada")));
    assert_eq!(read[0]["outboxattempt"], 3);
}

#[test]
fn an_answer_that_is_too_long_is_a_failure_and_not_taken_for_nothing() {
    let attempts = attempts([event(), event()]);
    let answer = format!("{{\"outcomes\": {{}}}}{}", " ".repeat(BYTES_MAX));
    for outcome in batch::outcomes(answer.as_bytes(), &attempts) {
        assert_eq!(retried(outcome).1.error, "the answer for a batch has more than 1048576 bytes");
    }
    let fits = &answer[..BYTES_MAX];
    assert_eq!(batch::outcomes(fits.as_bytes(), &attempts), [Outcome::done(), Outcome::done()]);
}

proptest! {
    #[test]
    fn every_text_is_sent_as_it_is(topic: String, key: String, state: String) {
        let headers = serde_json::json!({ "tracestate": state }).to_string();
        let event = Event { topic: topic.clone(), key: Some(key.clone()), headers, ..event() };
        let body = batch::body(&attempts([event]));
        let read: Vec<Value> = serde_json::from_str(&body).unwrap();
        prop_assert_eq!(&read[0]["type"], &Value::from(topic));
        prop_assert_eq!(read[0]["subject"].as_str().unwrap_or_default(), key);
        prop_assert_eq!(&read[0]["tracestate"], &Value::from(state));
    }

    /// Whatever is answered, every event has an outcome.
    #[test]
    fn no_answer_hurts(text in r#"[{"outcmes:1,}\[ ]{0,40}"#, bytes: Vec<u8>) {
        let attempts: Vec<Attempt> = attempts([event(), event(), event()]);
        prop_assert_eq!(batch::outcomes(text.as_bytes(), &attempts).len(), 3);
        prop_assert_eq!(batch::outcomes(&bytes, &attempts).len(), 3);
        let wrapped = format!("{{\"outcomes\": {text}}}");
        prop_assert_eq!(batch::outcomes(wrapped.as_bytes(), &attempts).len(), 3);
    }
}
