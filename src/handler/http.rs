//! The handler kind `http`: one POST per attempt, in the binary mode of CloudEvents, or per batch in its batched mode
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>), signed as
//! Standard Webhooks asks (<https://www.standardwebhooks.com>).
//!
//! Where an event has a say in which host is called, `guard` has one, too, and every call has a connection of its own.
//!
//! There is no deadline here: the caller drops the future, which closes the connection.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::dns::Resolve;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{ClientBuilder, Response, Url, redirect};
use ring::hmac;
use uuid::Uuid;

use super::answer::{self, DURATION_RULE, quote, with_response};
use super::batch::{self, source, trace_context};
use super::guard::{Guard, Refused, SystemNames};
use super::url::{self, fill};
use super::{Handler, OutcomeFuture, OutcomesFuture};
use crate::config::{HttpConfig, HttpUrl, IpNet, duration};
use crate::event::Attempt;
use crate::outcome::{Failure, Fault, Outcome};

const USER_AGENT: &str = concat!("outboxd/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Common servers close an idle connection after 5 s (Node.js, uvicorn). A request sent at that moment fails and
/// spends an attempt, so the client closes first.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Posts every event, or batch of events, to a URL.
pub struct HttpHandler {
    client: reqwest::Client,
    url: HttpUrl,
    /// Asked before the client is, where an event has a say in which host is called.
    guard: Option<Guard>,
    /// A signature for each: receivers know the old key or the new one.
    keys: Vec<hmac::Key>,
    /// The configured headers, or why they cannot be sent.
    headers: Result<HeaderMap, String>,
}

/// The client all HTTP handlers share whose host is configured. It follows no redirects and ignores `HTTP_PROXY` and its kin: an
/// event goes to the configured URL or nowhere.
///
/// # Errors
/// If TLS cannot be set up.
pub fn client() -> Result<reqwest::Client, reqwest::Error> {
    built(&|| reqwest::Client::builder().pool_idle_timeout(POOL_IDLE_TIMEOUT))
}

fn built(begin: &dyn Fn() -> ClientBuilder) -> Result<reqwest::Client, reqwest::Error> {
    // An error means that the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || begin().redirect(redirect::Policy::none()).no_proxy().connect_timeout(CONNECT_TIMEOUT);
    // A small system has no root certificates. Then it trusts nobody, and only handlers that call https suffer from that.
    builder().build().or_else(|_| builder().tls_certs_only([]).build())
}

/// The clients of HTTP handlers: one for the configured hosts, and one for all that are kept from the same addresses.
pub struct Clients {
    open: reqwest::Client,
    names: Arc<dyn Resolve>,
    guarded: Mutex<Vec<(Vec<IpNet>, reqwest::Client)>>,
}

impl Clients {
    #[must_use]
    pub fn new(open: reqwest::Client) -> Self {
        Self::with_names(open, Arc::new(SystemNames))
    }

    /// The same with another idea of what names lead to.
    pub(super) fn with_names(open: reqwest::Client, names: Arc<dyn Resolve>) -> Self {
        Self { open, names, guarded: Mutex::default() }
    }

    fn guard(&self, config: &HttpConfig) -> Option<Guard> {
        config.url.takes_host().then(|| Guard::new(&config.allow, Arc::clone(&self.names)))
    }

    /// A client that connects to nothing that the guard refuses. It keeps no connection: there may be a million hosts, and the
    /// addresses are checked when a connection is made.
    fn guarded(&self, config: &HttpConfig, guard: &Guard) -> Result<reqwest::Client, reqwest::Error> {
        let mut known = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = known.iter().find(|(allow, _)| *allow == config.allow) {
            return Ok(client.clone());
        }
        let client = built(&|| reqwest::Client::builder().dns_resolver(guard.clone()).pool_max_idle_per_host(0))?;
        known.push((config.allow.clone(), client.clone()));
        Ok(client)
    }
}

impl HttpHandler {
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(config: &HttpConfig, clients: &Clients) -> Result<Self, reqwest::Error> {
        let guard = clients.guard(config);
        let client = match &guard {
            Some(guard) => clients.guarded(config, guard)?,
            None => clients.open.clone(),
        };
        Ok(Self {
            client,
            url: config.url.clone(),
            guard,
            keys: config.secrets.iter().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.expose())).collect(),
            headers: configured_headers(config),
        })
    }

    async fn post(&self, attempt: &Attempt) -> Outcome {
        let body = attempt.body();
        let headers = match self.headers(attempt, &body) {
            Ok(headers) => headers,
            Err(error) => return Outcome::Dead { failure: Failure::new(error) },
        };
        match self.send(attempt, headers, body.into_owned(), answer::BYTES_MAX).await {
            Ok(None) => Outcome::done(),
            Ok(Some(answer)) => {
                with_response(answer::parse(&answer).after_success(), &String::from_utf8_lossy(&answer))
            }
            Err(outcome) => outcome,
        }
    }

    async fn post_batch(&self, attempts: &[Attempt]) -> Vec<Outcome> {
        let Some(first) = attempts.first() else { return Vec::new() };
        let body = batch::body(attempts);
        let outcome = match self.headers_of_batch(first, &body) {
            // A URL that takes something from an event has no batches.
            Ok(headers) => match self.send(first, headers, body, batch::BYTES_MAX).await {
                Ok(answer) => return batch::outcomes(&answer.unwrap_or_default(), attempts),
                Err(outcome) => outcome,
            },
            Err(error) => Outcome::Dead { failure: Failure::new(error) },
        };
        vec![outcome; attempts.len()]
    }

    /// The JSON of an answer that succeeded, if there is one, at most one byte more than so many; otherwise how the attempt ended.
    async fn send(
        &self,
        attempt: &Attempt,
        headers: HeaderMap,
        body: String,
        answer_max: usize,
    ) -> Result<Option<Vec<u8>>, Outcome> {
        let url = fill(&self.url, &attempt.event).map_err(|error| Outcome::Dead { failure: Failure::new(error) })?;
        let call = Call { of: &self.url, url };
        if let Some(Err(refused)) = self.guard.as_ref().map(|guard| guard.check_url(&call.url)) {
            return Err(call.dead(&refused.to_string()));
        }
        let request = self.client.post(call.url.clone()).headers(headers).body(body);
        match request.send().await {
            Ok(response) => call.judge(response, answer_max).await,
            Err(error) => Err(call.not_answered(error)),
        }
    }

    /// What is sent beside the body.
    fn headers(&self, attempt: &Attempt, body: &str) -> Result<HeaderMap, String> {
        let event = &*attempt.event;
        let id = attempt.idempotency_key();
        let mut texts = vec![
            ("ce-specversion", "1.0".to_owned()),
            ("ce-id", event.id.to_string()),
            ("ce-type", percent_encoded(&event.topic)),
            ("ce-source", source(attempt)),
            ("ce-time", event.created_at.to_string()),
            ("idempotency-key", id.clone()),
            ("outbox-attempt", attempt.number.to_string()),
        ];
        if let Some(key) = event.key.as_deref().filter(|key| !key.is_empty()) {
            texts.push(("ce-subject", percent_encoded(key)));
        }
        if event.replay() > 0 {
            texts.push(("outbox-replay", event.replay().to_string()));
        }
        if let Some(url) = &attempt.callback {
            texts.push(("outbox-callback", url.clone()));
        }
        let mut headers = self.message(&attempt.handler, id, "application/json", body, texts)?;
        // One that cannot be sent is left out: tracing never fails a delivery.
        headers.extend(
            trace_context(attempt)
                .filter_map(|(name, text)| Some((HeaderName::from_static(name), HeaderValue::from_str(&text).ok()?))),
        );
        Ok(headers)
    }

    fn headers_of_batch(&self, first: &Attempt, body: &str) -> Result<HeaderMap, String> {
        // What is sent again is sent in other company, so it is another message.
        self.message(&first.handler, Uuid::new_v4().to_string(), batch::MEDIA_TYPE, body, Vec::new())
    }

    /// What every message has, signed if that is wanted, and these.
    fn message(
        &self,
        handler: &str,
        id: String,
        content_type: &str,
        body: &str,
        mut texts: Vec<(&'static str, String)>,
    ) -> Result<HeaderMap, String> {
        let timestamp = Timestamp::now().as_second().to_string();
        if !self.keys.is_empty() {
            texts.push(("webhook-signature", signatures(&self.keys, &id, &timestamp, body)?));
        }
        texts.extend([
            ("content-type", content_type.to_owned()),
            ("user-agent", USER_AGENT.to_owned()),
            ("outbox-handler", handler.to_owned()),
            ("webhook-id", id),
            ("webhook-timestamp", timestamp),
        ]);
        // What outboxd says about the event wins over what is configured.
        let mut headers = self.headers.clone()?;
        for (name, text) in texts {
            let value = HeaderValue::from_str(&text)
                .map_err(|_| format!("{text:?} cannot be sent as the header {name}: only visible ASCII can"))?;
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

/// One call, and how errors name it.
struct Call<'h> {
    of: &'h HttpUrl,
    url: Url,
}

impl Call<'_> {
    fn not_answered(&self, error: reqwest::Error) -> Outcome {
        if let Some(refused) = Refused::among(&error) {
            return self.dead(&refused.to_string());
        }
        // Whatever comes before the request: the name, the connection, TLS.
        let fault = if error.is_connect() { Fault::Unreachable } else { Fault::Failing };
        self.retry(fault, None, &in_full(error))
    }

    async fn judge(&self, mut response: Response, answer_max: usize) -> Result<Option<Vec<u8>>, Outcome> {
        let (body, broken) = read_body(&mut response, answer_max).await;
        let outcome = match response.status().as_u16() {
            202 if wants_to_wait(&response) => match wait_timeout(&response) {
                Ok(timeout) => Outcome::Wait { timeout },
                Err(error) => self.retry(Fault::Refused, None, &error),
            },
            200..=299 => match broken {
                // It may have been on its way to say anything but done.
                Some(error) => {
                    self.retry(Fault::Failing, None, &format!("{}, then {}", response.status(), in_full(error)))
                }
                None => return Ok(is_json(&response).then_some(body)),
            },
            300..=399 => {
                let to = location(&response);
                self.dead(&format!("{}: redirects are not followed; it leads to {to}", response.status()))
            }
            // It is there and asks for patience.
            408 | 425 | 429 => self.retry(Fault::Refused, asked_after(&response), &response.status().to_string()),
            500..=599 => self.retry(Fault::Failing, asked_after(&response), &response.status().to_string()),
            // What is gone there is one event's target, not everybody's.
            410 if self.of.fixed().is_none() => self.dead(&response.status().to_string()),
            410 => Outcome::Gone { failure: self.failure(&response.status().to_string()) },
            400..=499 => self.dead(&response.status().to_string()),
            _ => self.retry(Fault::Failing, None, &format!("unexpected status {}", response.status())),
        };
        Err(with_response(outcome, &String::from_utf8_lossy(&body)))
    }

    fn retry(&self, fault: Fault, after: Option<Duration>, error: &str) -> Outcome {
        Outcome::Retry { after, failure: self.failure(error).with_fault(fault) }
    }

    fn dead(&self, error: &str) -> Outcome {
        Outcome::Dead { failure: self.failure(error) }
    }

    fn failure(&self, error: &str) -> Failure {
        Failure::new(format!("POST {}: {error}", self.of.shown_as(&self.url)))
    }
}

impl Handler for HttpHandler {
    fn run<'a>(&'a self, attempt: &'a Attempt) -> OutcomeFuture<'a> {
        Box::pin(self.post(attempt))
    }

    fn run_batch<'a>(&'a self, attempts: &'a [Attempt]) -> OutcomesFuture<'a> {
        Box::pin(self.post_batch(attempts))
    }
}

fn configured_headers(config: &HttpConfig) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &config.headers {
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("the configured header {name:?} has an invalid name"))?;
        // The value is a secret, so the error does not repeat it.
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| {
            format!("the configured header {name} has an invalid value: only visible ASCII can be sent")
        })?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

/// Signs `<id>.<timestamp>.<body>` with each of the keys. With a dot in the id, two different messages could have one signature.
fn signatures(keys: &[hmac::Key], id: &str, timestamp: &str, body: &str) -> Result<String, String> {
    if id.contains('.') {
        return Err(format!("{id:?} cannot be signed as webhook-id: it contains a dot"));
    }
    let signed = |key: &hmac::Key| {
        let mut context = hmac::Context::with_key(key);
        for part in [id, ".", timestamp, ".", body] {
            context.update(part.as_bytes());
        }
        format!("v1,{}", STANDARD.encode(context.sign()))
    };
    Ok(keys.iter().map(signed).collect::<Vec<_>>().join(" "))
}

/// A text as the value of a CloudEvents header: visible ASCII as it is, except for `"` and `%`; the rest as `%XX`.
pub(super) fn percent_encoded(text: &str) -> String {
    url::percent_encoded(text, |byte| matches!(byte, b'!'..=b'~') && byte != b'"' && byte != b'%')
}

/// The beginning of the body, and why it ends too early if it does. One byte more than an answer may have is kept,
/// so that an answer that was cut is not taken for a complete one. The rest is never read.
async fn read_body(response: &mut Response, bytes_max: usize) -> (Vec<u8>, Option<reqwest::Error>) {
    let mut body = Vec::new();
    while body.len() <= bytes_max {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = bytes_max + 1 - body.len();
                body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            }
            Ok(None) => break,
            Err(error) => return (body, Some(error)),
        }
    }
    (body, None)
}

fn text<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok().map(str::trim)
}

fn wants_to_wait(response: &Response) -> bool {
    text(response, "outbox-outcome").is_some_and(|outcome| outcome.eq_ignore_ascii_case("wait"))
}

/// How long to wait for the callback, or what is wrong with `Outbox-Wait`. One that cannot be read is no 24 hours: what was
/// meant may be a minute.
fn wait_timeout(response: &Response) -> Result<Option<Duration>, String> {
    let Some(value) = response.headers().get("outbox-wait") else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let text = text.trim();
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.or_else(|| duration::parse(text).ok()).map(Some).ok_or_else(|| {
        format!("202 with Outbox-Outcome: wait, but its Outbox-Wait is {}; it must be {DURATION_RULE}", quote(text))
    })
}

fn is_json(response: &Response) -> bool {
    text(response, CONTENT_TYPE.as_str())
        .and_then(|content_type| content_type.split(';').next())
        .is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}

/// Where a redirect leads, without the query, which may hold a token.
fn location(response: &Response) -> &str {
    text(response, LOCATION.as_str())
        .and_then(|location| location.split(['?', '#']).next())
        .filter(|location| !location.is_empty())
        .unwrap_or("nowhere")
}

fn asked_after(response: &Response) -> Option<Duration> {
    retry_after(text(response, RETRY_AFTER.as_str())?, Timestamp::now())
}

/// How long a `Retry-After` asks us to wait, in seconds or until a date; a date that has passed means now.
#[must_use]
pub fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// The error with all its causes: "error sending request" alone helps nobody.
fn in_full(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
