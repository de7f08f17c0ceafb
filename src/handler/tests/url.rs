//! What comes from an event stays in its place in the URL.

use proptest::prelude::*;
use serde_json::json;

use super::super::url::fill;
use super::event;
use crate::config::HttpUrl;
use crate::event::Event;

fn filled(url: &str, event: &Event) -> Result<String, String> {
    fill(&url.parse().unwrap(), event).map(String::from)
}

fn with(payload: &serde_json::Value) -> Event {
    Event { payload: payload.to_string(), ..event() }
}

#[test]
fn everything_an_event_has_can_be_a_part_of_a_url() {
    let event =
        Event { headers: json!({ "x-region": "eu" }).to_string(), ..with(&json!({ "a": { "b": 7, "c": "x y/z" }})) };
    for (url, expected) in [
        ("https://example.com/a?b={c}".replace("{c}", "1").as_str(), "https://example.com/a?b=1"),
        ("http://h.example/{topic}/{key}/{id}", "http://h.example/user.registered/ada/42"),
        ("http://{headers.x-region}.h.example:8080/{payload.a.b}", "http://eu.h.example:8080/7"),
        ("http://h.example/{payload.a.c}?q={payload.a.c}&t=1", "http://h.example/x%20y%2Fz?q=x%20y%2Fz&t=1"),
        ("http://h.example/a{id}-{id}b", "http://h.example/a42-42b"),
        ("http://h.example?{key}={id}", "http://h.example/?ada=42"),
    ] {
        assert_eq!(filled(url, &event).as_deref(), Ok(expected), "{url}");
    }
}

#[test]
fn numbers_stay_as_they_are_written() {
    for number in ["12345678901234567890123456789", "-0.10", "1e400", "0"] {
        let event = Event { payload: format!("{{\"n\": {number}}}"), ..event() };
        assert_eq!(filled("http://h.example/{payload.n}", &event), Ok(format!("http://h.example/{number}")));
    }
}

#[test]
fn a_whole_url_is_a_url() {
    let of = |url: &str| filled("{payload.endpoint}", &with(&json!({ "endpoint": url })));
    for (url, expected) in [
        ("https://Hooks.example", "https://hooks.example/"),
        ("HTTP://hooks.example:81/a?token=1#part", "http://hooks.example:81/a?token=1"),
        ("https://hooks.example/ä", "https://hooks.example/%C3%A4"),
    ] {
        assert_eq!(of(url).as_deref(), Ok(expected), "{url}");
    }
    for (url, rule) in [
        ("ftp://hooks.example/", "begins with http:// or https://"),
        ("file:///etc/passwd", "begins with http:// or https://"),
        ("gopher://127.0.0.1:6379/_FLUSHALL", "begins with http:// or https://"),
        ("//hooks.example/", "begins with http:// or https://"),
        ("/hooks", "begins with http:// or https://"),
        ("http:hooks.example", "begins with http:// or https://"),
        ("http:\\\\hooks.example", "begins with http:// or https://"),
        (" http://hooks.example", "begins with http:// or https://"),
        ("ä", "begins with http:// or https://"),
        ("http://hooks.example\\@127.0.0.1/", "no white space, control characters and backslashes"),
        ("http://hooks.exa\tmple/", "no white space, control characters and backslashes"),
        ("http://hooks.example/\r\nHost: x", "no white space, control characters and backslashes"),
        ("http://", "it must be a URL (empty host)"),
        ("http://?x", "it must be a URL (empty host)"),
        ("http://h:99999/", "it must be a URL (invalid port number)"),
        ("http://[::1/", "it must be a URL (invalid IPv6 address)"),
        ("http://hunter2@hooks.example/", "no user or password"),
        ("http://a:hunter2@hooks.example/?hunter2", "no user or password"),
        ("http://127.0.0.1:80@hooks.example/", "no user or password"),
        ("http://a b?hunter2", "no white space"),
    ] {
        let error = of(url).unwrap_err();
        assert!(error.starts_with("{payload.endpoint} is \"") && error.contains(rule), "{url}: {error}");
        assert!(!error.contains("hunter2"), "{url}: {error}");
    }
    let long = |bytes: usize| format!("http://h.example/{}", "x".repeat(bytes - 17));
    assert!(of(&long(2000)).is_ok());
    assert!(of(&long(2001)).unwrap_err().contains("has 2001 bytes"));
    let grows = format!("http://h.example/{}", "ä".repeat(500));
    assert!(of(&grows).unwrap_err().contains("has 3017 bytes"), "{:?}", of(&grows));
}

#[test]
fn what_does_not_fit_into_its_place_is_named() {
    let event = with(&json!({
        "null": null, "yes": true, "list": [1], "object": {}, "empty": "", "dots": "..", "dot": ".", "host": "a.b", "up": "..%2f",
        "puny": "xn--0", "label": "a".repeat(64), "long": "x".repeat(2001)
    }));
    for (url, error) in [
        (
            "http://h.example/{payload.absent}",
            "{payload.absent} is missing in this event; the URL needs a text or a number",
        ),
        ("http://h.example/{payload.empty.a}", "{payload.empty.a} is missing in this event"),
        ("http://h.example/{headers.absent}", "{headers.absent} is missing in this event"),
        ("http://h.example/{payload.null}", "{payload.null} is null in this event; the URL needs a text or a number"),
        ("http://h.example/{payload.yes}", "{payload.yes} is true in this event"),
        ("http://h.example/{payload.list}", "{payload.list} is [1] in this event"),
        ("http://h.example/{payload.object}", "{payload.object} is {} in this event"),
        ("http://h.example/{payload.empty}", "{payload.empty} is empty in this event"),
        ("http://h.example/a/{payload.dots}", "http://h.example/a/{payload.dots} becomes a path with . or .."),
        (
            "http://h.example/a/.{payload.dot}/b?t=hunter2",
            "http://h.example/a/.{payload.dot}/b becomes a path with . or ..",
        ),
        ("http://h.example/a/{payload.dot}?x", "http://h.example/a/{payload.dot} becomes a path with . or .."),
        (
            "http://{payload.host}.h.example/",
            "{payload.host} is \"a.b\" in this event; in a host it must be 1 to 63 letters",
        ),
        ("http://{payload.label}.h.example/", "in a host it must be 1 to 63 letters, digits and -"),
        ("http://h.example/{payload.long}", "{payload.long} has 2001 bytes; a URL has at most 2000"),
        ("http://{payload.puny}.h.example/", "http://{payload.puny}.h.example/ is not a URL with what this event has"),
    ] {
        let said = filled(url, &event).unwrap_err();
        assert!(said.contains(error) && !said.contains("hunter2"), "{url}: {said}");
    }
    // These are no dot segments.
    assert!(filled("http://h.example/{payload.up}/x{payload.dots}", &event).is_ok());
    let without_key = Event { key: None, ..event };
    assert!(filled("http://h.example/{key}", &without_key).unwrap_err().starts_with("{key} is missing"));
}

/// Texts that try to get out of where they are.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,20}", "[-/?#@:%.\\\\&=+;,a-z0-9\\[\\] \t\n]{0,12}", "(\\.|%2e|%2E|/|\\\\|%2f|%00|x){0,6}",]
}

proptest! {
    #[test]
    fn no_value_leaves_its_place(label in texts(), segment in texts(), query in texts()) {
        let event = with(&json!({ "l": label, "s": segment, "q": query }));
        let url: HttpUrl = "https://a-{payload.l}.h.example:8443/one/{payload.s}/three?k={payload.q}&last=1".parse().unwrap();
        if let Ok(filled) = fill(&url, &event) {
            let host = filled.host_str().unwrap().to_owned();
            prop_assert_eq!((filled.scheme(), filled.port()), ("https", Some(8443)));
            prop_assert!(host.starts_with("a-") && host.ends_with(".h.example") && host.matches('.').count() == 2, "{}", host);
            let segments: Vec<&str> = filled.path_segments().unwrap().collect();
            prop_assert!(segments.len() == 3 && segments[0] == "one" && segments[2] == "three", "{}", filled);
            let pairs: Vec<(String, String)> = filled.query_pairs().into_owned().collect();
            prop_assert_eq!(pairs, [("k".to_owned(), query), ("last".to_owned(), "1".to_owned())]);
            prop_assert!(filled.fragment().is_none() && filled.username().is_empty() && filled.password().is_none());
        }
    }

    #[test]
    fn a_whole_url_is_absolute_and_has_no_password(url in prop_oneof![texts(), texts().prop_map(|rest| format!("http://{rest}"))]) {
        if let Ok(filled) = fill(&"{payload.u}".parse().unwrap(), &with(&json!({ "u": url }))) {
            prop_assert!(matches!(filled.scheme(), "http" | "https") && filled.host_str().is_some_and(|host| !host.is_empty()));
            prop_assert!(filled.username().is_empty() && filled.password().is_none() && filled.fragment().is_none());
            prop_assert!(filled.as_str().len() <= 2000);
        }
    }
}
