//! What the handler kind `http` promises.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, Uri};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use proptest::prelude::*;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::super::Handler as _;
use super::super::http::{Clients, HttpHandler, client, percent_encoded};
use super::{attempt, dead, event, retried, run, within_patience};
use crate::config::{HttpConfig, Secret, SigningKey};
use crate::event::Event;
use crate::outcome::{Fault, Outcome};

/// A request as the server saw it.
type Received = (Uri, HeaderMap, Bytes);

fn config(url: &str) -> HttpConfig {
    HttpConfig { url: url.parse().unwrap(), allow: Vec::new(), secrets: Vec::new(), headers: BTreeMap::new() }
}

fn handler(config: &HttpConfig) -> HttpHandler {
    HttpHandler::new(config, &Clients::new(client().unwrap())).unwrap()
}

fn post_to(address: SocketAddr) -> HttpHandler {
    handler(&config(&format!("http://{address}/hooks?token=s3cret")))
}

/// A server that always answers the same, and the requests it gets.
async fn answering(
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: impl Into<Bytes>,
) -> (SocketAddr, mpsc::UnboundedReceiver<Received>) {
    let (sender, received) = mpsc::unbounded_channel();
    let body = body.into();
    let answer = move |uri: Uri, request: HeaderMap, payload: Bytes| async move {
        sender.send((uri, request, payload)).unwrap();
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        (StatusCode::from_u16(status).unwrap(), headers, body)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
    (address, received)
}

/// What comes of one delivery to a server that answers this.
async fn outcome_of(status: u16, headers: &'static [(&'static str, &'static str)], body: impl Into<Bytes>) -> Outcome {
    let (address, _received) = answering(status, headers, body).await;
    run(&post_to(address), event()).await
}

/// A server that reads one request and then does what only a broken one does.
async fn broken<F>(misbehave: impl FnOnce(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(event().payload.as_bytes()) {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        misbehave(stream).await;
    });
    address
}

async fn outcome_of_raw(response: &'static str) -> Outcome {
    let address = broken(async |mut stream| stream.write_all(response.as_bytes()).await.unwrap()).await;
    run(&post_to(address), event()).await
}

const JSON: &[(&str, &str)] = &[("content-type", "Application/JSON; charset=utf-8")];

#[tokio::test]
async fn the_status_decides() {
    for status in [200, 201, 202, 204, 299] {
        assert_eq!(outcome_of(status, &[], "").await, Outcome::done(), "{status}");
    }
    let (patience, failing) = ([408, 425, 429], [500, 501, 503, 599, 600, 999]);
    for (statuses, fault) in [(&patience[..], Fault::Refused), (&failing, Fault::Failing)] {
        for status in statuses {
            let (after, failure) = retried(outcome_of(*status, &[], "").await);
            assert_eq!((after, failure.fault), (None, fault), "{status}");
            assert!(failure.error.contains(&status.to_string()), "{}", failure.error);
        }
    }
    for status in [300, 304, 400, 401, 404, 422, 499] {
        let failure = dead(outcome_of(status, &[], "").await);
        assert!(failure.error.contains(&status.to_string()), "{}", failure.error);
    }
    let (_, failure) = retried(outcome_of_raw("HTTP/1.1 101 Switching Protocols\r\n\r\n").await);
    assert!(failure.error.contains("unexpected status 101"), "{}", failure.error);
}

#[tokio::test]
async fn a_failure_names_the_url_without_its_query_and_keeps_the_response() {
    let (address, _received) = answering(400, &[], &b"no such user \xff\0"[..]).await;
    let failure = dead(run(&post_to(address), event()).await);
    assert_eq!(failure.error, format!("POST http://{address}/hooks: 400 Bad Request"));
    assert_eq!(failure.response.as_deref(), Some("no such user \u{fffd}\u{fffd}"));
}

#[tokio::test]
async fn the_request_is_a_cloud_event() {
    let (address, mut received) = answering(200, &[], "").await;
    run(&post_to(address), event()).await;
    let (uri, headers, body) = received.recv().await.unwrap();
    let key = attempt(event()).idempotency_key();
    assert_eq!(uri.to_string(), "/hooks?token=s3cret");
    assert_eq!(body, event().payload);
    for (name, value) in [
        ("content-type", "application/json"),
        ("user-agent", concat!("outboxd/", env!("CARGO_PKG_VERSION"))),
        ("ce-specversion", "1.0"),
        ("ce-id", "42"),
        ("ce-type", "user.registered"),
        ("ce-source", "/outboxd/0b0c6a3e-2f0b-4a7e-9c55-0d9f3f5f1a11"),
        ("ce-subject", "ada"),
        ("ce-time", "2026-03-01T12:30:00.123456Z"),
        ("idempotency-key", &key),
        ("webhook-id", &key),
        ("outbox-attempt", "3"),
        ("outbox-handler", "welcome_email"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    let timestamp: i64 = headers["webhook-timestamp"].to_str().unwrap().parse().unwrap();
    assert!((Timestamp::now().as_second() - timestamp).abs() < 60);
    assert!(!headers.contains_key("webhook-signature"), "there is no secret to sign with");
}

#[tokio::test]
async fn the_subject_is_left_out_without_a_key_and_encoded_if_it_must_be() {
    let (address, mut received) = answering(200, &[], "").await;
    run(&post_to(address), Event { key: None, ..event() }).await;
    assert!(!received.recv().await.unwrap().1.contains_key("ce-subject"));
    run(&post_to(address), Event { key: Some("Euro € 50% \"\n".to_owned()), ..event() }).await;
    assert_eq!(received.recv().await.unwrap().1["ce-subject"], "Euro%20%E2%82%AC%2050%25%20%22%0A");
}

#[tokio::test]
async fn the_signature_verifies() {
    let secret = vec![7; 32];
    let (address, mut received) = answering(200, &[], "").await;
    let config = HttpConfig { secrets: vec![SigningKey::new(secret.clone())], ..config(&format!("http://{address}/")) };
    let event = Event { payload: r#"{"name": "Zoë"}"#.to_owned(), ..event() };
    run(&handler(&config), event).await;
    let (_, headers, body) = received.recv().await.unwrap();
    let webhook = standardwebhooks::Webhook::from_bytes(secret).unwrap();
    webhook.verify(&body, &headers).unwrap();
    webhook.verify(b"another body", &headers).unwrap_err();
}

#[tokio::test]
async fn while_keys_are_exchanged_the_old_one_and_the_new_one_verify() {
    let [new, old, other] = [3, 7, 9].map(|byte| vec![byte; 32]);
    let (address, mut received) = answering(200, &[], "").await;
    let secrets = vec![SigningKey::new(new.clone()), SigningKey::new(old.clone())];
    run(&handler(&HttpConfig { secrets, ..config(&format!("http://{address}/")) }), event()).await;
    let (_, headers, body) = received.recv().await.unwrap();
    let verifies = |key: &Vec<u8>, body: &[u8]| {
        standardwebhooks::Webhook::from_bytes(key.clone()).unwrap().verify(body, &headers).is_ok()
    };
    for key in [&new, &old] {
        assert!(verifies(key, &body));
        assert!(!verifies(key, b"another body"));
    }
    assert!(!verifies(&other, &body));
    let signatures: Vec<&str> = headers["webhook-signature"].to_str().unwrap().split(' ').collect();
    assert!(signatures.len() == 2 && signatures.iter().all(|one| one.starts_with("v1,")), "{signatures:?}");
}

#[tokio::test]
async fn an_id_with_a_dot_is_not_signed() {
    let config = HttpConfig { secrets: vec![SigningKey::new(vec![7; 32])], ..config("http://127.0.0.1:9/") };
    let mut attempt = attempt(event());
    attempt.handler = "welcome.email".into();
    let failure = dead(handler(&config).run(&attempt).await);
    assert!(failure.error.contains("it contains a dot"), "{}", failure.error);
}

#[tokio::test]
async fn of_the_events_headers_only_the_trace_context_is_sent() {
    let (address, mut received) = answering(200, &[], "").await;
    let headers = json!({ "traceparent": "00-aa-bb-01", "tracestate": "a\nb", "x-tenant": "7", "host": "evil" });
    run(&post_to(address), Event { headers: headers.to_string(), ..event() }).await;
    let (_, headers, _) = received.recv().await.unwrap();
    assert_eq!(headers["traceparent"], "00-aa-bb-01");
    assert!(!headers.contains_key("tracestate"), "a value that cannot be sent is left out");
    assert!(!headers.contains_key("x-tenant"));
    assert_eq!(headers["host"], address.to_string());
}

#[tokio::test]
async fn configured_headers_are_sent_and_override_nothing() {
    let (address, mut received) = answering(200, &[], "").await;
    let mut config = config(&format!("http://{address}/"));
    for (name, value) in [("Authorization", "Bearer s3cret"), ("ce-id", "1")] {
        config.headers.insert(name.to_owned(), Secret::new(value.to_owned()));
    }
    run(&handler(&config), event()).await;
    let (_, headers, _) = received.recv().await.unwrap();
    assert_eq!(headers["authorization"], "Bearer s3cret");
    assert_eq!(headers.get_all("ce-id").iter().collect::<Vec<_>>(), ["42"]);
}

#[tokio::test]
async fn a_header_that_cannot_be_sent_is_dead_and_keeps_its_secret() {
    for (name, value, error) in [
        ("x-token", "s3cret\r\nhost: evil", "the configured header x-token has an invalid value"),
        ("x token", "s3cret", "the configured header \"x token\" has an invalid name"),
    ] {
        let mut config = config("http://127.0.0.1:9/");
        config.headers.insert(name.to_owned(), Secret::new(value.to_owned()));
        let failure = dead(run(&handler(&config), event()).await);
        assert!(failure.error.starts_with(error), "{}", failure.error);
        assert!(!failure.error.contains("s3cret"));
    }
    let mut attempt = attempt(event());
    attempt.handler = "a\nb".into();
    let failure = dead(handler(&config("http://127.0.0.1:9/")).run(&attempt).await);
    assert!(failure.error.contains("only visible ASCII"), "{}", failure.error);
}

#[tokio::test]
async fn a_json_answer_decides_a_success() {
    let snooze = r#"{"outcome": "snooze", "after": "1m"}"#;
    assert_eq!(outcome_of(200, JSON, snooze).await, Outcome::Snooze { after: Some(Duration::from_mins(1)) });
    assert_eq!(outcome_of(201, JSON, r#"{"id": 7}"#).await, Outcome::done_with(json!({"id": 7})));
    assert_eq!(outcome_of(200, JSON, "not json").await, Outcome::done());
    assert_eq!(outcome_of(200, &[("content-type", "text/plain")], snooze).await, Outcome::done());
    let (after, failure) = retried(outcome_of(500, JSON, snooze).await);
    assert_eq!((after, failure.response.as_deref()), (None, Some(snooze)));
    let (_, failure) = retried(outcome_of(200, JSON, r#"{"outcome": "done", "emit": [{}]}"#).await);
    assert!(failure.error.contains("emit[0] has no topic"), "{}", failure.error);
}

#[tokio::test]
async fn retry_after_is_honoured_as_seconds_and_as_a_date() {
    for status in [408, 429, 503] {
        let (after, _) = retried(outcome_of(status, &[("retry-after", " 120 ")], "").await);
        assert_eq!(after, Some(Duration::from_mins(2)), "{status}");
    }
    let (after, _) = retried(outcome_of(503, &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], "").await);
    assert_eq!(after, Some(Duration::ZERO));
    for nonsense in [&[("retry-after", "soon")], &[("retry-after", "-5")], &[("retry-after", "")]] {
        assert_eq!(retried(outcome_of(503, nonsense, "").await).0, None);
    }

    let hour = Duration::from_hours(1);
    let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&(Timestamp::now() + hour)).unwrap();
    let address = broken(async move |mut stream| {
        let response = format!("HTTP/1.1 429 Slow Down\r\nretry-after: {date}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(response.as_bytes()).await.unwrap();
    })
    .await;
    let after = retried(run(&post_to(address), event()).await).0.unwrap();
    assert!(after <= hour && after > hour.saturating_sub(Duration::from_mins(2)), "{after:?}");
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let (target, mut reached) = answering(200, &[], "").await;
    for status in [301, 302, 303, 307, 308] {
        let address = broken(async move |mut stream| {
            let response = format!(
                "HTTP/1.1 {status} Moved\r\nlocation: http://{target}/there?token=s3cret\r\ncontent-length: 0\r\n\r\n"
            );
            stream.write_all(response.as_bytes()).await.unwrap();
        })
        .await;
        let failure = dead(run(&post_to(address), event()).await);
        assert!(failure.error.ends_with(&format!("it leads to http://{target}/there")), "{}", failure.error);
    }
    assert!(reached.try_recv().is_err());
}

#[tokio::test]
async fn gone_is_an_outcome_of_its_own() {
    let Outcome::Gone { failure } = outcome_of(410, &[], "moved to nowhere").await else { panic!() };
    assert!(failure.error.ends_with("/hooks: 410 Gone"), "{}", failure.error);
    assert_eq!(failure.response.as_deref(), Some("moved to nowhere"));
}

#[tokio::test]
async fn a_202_may_ask_to_wait_for_a_callback() {
    let waits = |hours: Option<u64>| Outcome::Wait { timeout: hours.map(Duration::from_hours) };
    assert_eq!(outcome_of(202, &[("outbox-outcome", "Wait")], "queued").await, waits(None));
    for wait in
        [&[("outbox-outcome", "wait"), ("outbox-wait", " 3600 ")], &[("outbox-outcome", "wait"), ("outbox-wait", "1h")]]
    {
        assert_eq!(outcome_of(202, wait, "").await, waits(Some(1)));
    }
    assert_eq!(outcome_of(202, JSON, r#"{"outcome": "wait", "timeout": "1h"}"#).await, waits(Some(1)));
    assert_eq!(outcome_of(202, &[("outbox-wait", "1h")], "").await, Outcome::done());
}

#[tokio::test]
async fn a_wait_of_no_known_length_is_a_failed_attempt() {
    for (wait, shown) in [
        (&[("outbox-outcome", "wait"), ("outbox-wait", "soon")], "soon"),
        (&[("outbox-outcome", "wait"), ("outbox-wait", "-5")], "-5"),
        (&[("outbox-outcome", "wait"), ("outbox-wait", "")], ""),
    ] {
        let (_, failure) = retried(outcome_of(202, wait, "").await);
        assert_eq!(failure.fault, Fault::Refused);
        assert!(
            failure.error.contains(&format!("its Outbox-Wait is {shown}; it must be a number")),
            "{}",
            failure.error
        );
    }
}

#[tokio::test]
async fn an_endless_response_is_cut() {
    let (hung_up, mut seen) = mpsc::unbounded_channel();
    let address = broken(async move |mut stream| {
        let zeros = vec![0; 65_536];
        stream.write_all(b"HTTP/1.1 503 Busy\r\nretry-after: 5\r\n\r\n").await.unwrap();
        while stream.write_all(&zeros).await.is_ok() {}
        hung_up.send(()).unwrap();
    })
    .await;
    let (after, failure) = retried(run(&post_to(address), event()).await);
    assert_eq!(after, Some(Duration::from_secs(5)));
    assert!(failure.response.unwrap().ends_with("(65537 bytes in all)"));
    within_patience("the server sees that nobody listens", seen.recv()).await.unwrap();
}

#[tokio::test]
async fn a_refused_connection_is_unreachable_and_names_the_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (after, failure) = retried(run(&post_to(address), event()).await);
    assert_eq!((after, failure.fault), (None, Fault::Unreachable));
    assert!(failure.error.starts_with(&format!("POST http://{address}/hooks: ")), "{}", failure.error);
    assert!(failure.error.contains("Connection refused"), "{}", failure.error);
    assert!(!failure.error.contains("s3cret"), "{}", failure.error);
}

#[tokio::test]
async fn a_connection_that_breaks_is_failing() {
    for response in ["", "HTTP/1.1 200", "nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf"] {
        let (_, failure) = retried(outcome_of_raw(response).await);
        assert_eq!(failure.fault, Fault::Failing, "{response}");
        assert!(failure.error.contains("/hooks: "), "{}", failure.error);
    }
    let (_, failure) = retried(outcome_of_raw("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf").await);
    assert_eq!(failure.response.as_deref(), Some("half"));
}

#[tokio::test]
async fn a_server_that_hangs_up_on_everybody_is_failing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    let (_, failure) = retried(run(&post_to(address), event()).await);
    assert_eq!(failure.fault, Fault::Failing, "{}", failure.error);
}

#[tokio::test]
async fn a_broken_body_does_not_hide_the_status() {
    let failure = dead(outcome_of_raw("HTTP/1.1 400 Bad Request\r\ncontent-length: 50\r\n\r\nhalf").await);
    assert_eq!(failure.response.as_deref(), Some("half"));
}

#[tokio::test]
async fn a_server_without_tls_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_buf(&mut Vec::new()).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let (_, failure) = retried(run(&handler(&config(&url)), event()).await);
    assert!(failure.error.contains("corrupt message"), "{}", failure.error);
    assert_eq!(failure.fault, Fault::Unreachable);
}

#[tokio::test]
async fn dropping_the_future_closes_the_connection() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let address = broken(async move |mut stream| {
        sender.send("the request").unwrap();
        assert_eq!(stream.read_buf(&mut Vec::new()).await.unwrap_or(0), 0);
        sender.send("the end").unwrap();
    })
    .await;
    let (handler, attempt) = (post_to(address), attempt(event()));
    tokio::select! {
        outcome = handler.run(&attempt) => panic!("{outcome:?}"),
        request = within_patience("the request arrives", seen.recv()) => assert_eq!(request, Some("the request")),
    }
    assert_eq!(within_patience("the connection ends", seen.recv()).await, Some("the end"));
}

proptest! {
    #[test]
    fn every_text_can_be_sent_and_read_back(text: String) {
        let encoded = percent_encoded(&text);
        prop_assert!(encoded.bytes().all(|byte| matches!(byte, b'!'..=b'~')));
        let mut bytes = encoded.bytes();
        let mut decoded = Vec::new();
        while let Some(byte) = bytes.next() {
            decoded.push(match byte {
                b'%' => {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    u8::from_str_radix(str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                other => other,
            });
        }
        prop_assert_eq!(String::from_utf8(decoded).unwrap(), text);
    }
}
