//! Spans on their way to a receiver: OTLP over HTTP, in protobuf (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).
//!
//! One task sends them, batch after batch. Whoever tells of an attempt never waits for it: what does not fit into the queue is
//! dropped and counted, and so is what the receiver does not take in time. Nothing but spans is ever lost by that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{sleep, timeout, timeout_at};
use uuid::Uuid;

use super::spans::{SPANS, Settled, text};
use crate::config::TracesConfig;
use crate::handler::http::retry_after;
use crate::metrics::Metrics;
use crate::observe::{Observation, Observer, chain};
use crate::outcome::excerpt;

/// Attempts that wait to be told of; more are dropped.
const QUEUE_MAX: usize = 4096;
/// Attempts of one request. A span has some 300 bytes.
const BATCH_MAX: usize = 512;
/// How long a batch that is not full waits for more.
const GATHER: Duration = Duration::from_secs(1);
/// How long one request may take.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// For how long a batch is tried again.
const TRY_FOR: Duration = Duration::from_mins(1);
/// Between two tries: doubled from the first to the second, the upper half left to chance.
const AGAIN_MIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(15);
/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 65_536;

/// Takes what is to be told. The exporter ends when the last of them is gone.
#[derive(Clone)]
pub struct Tracer {
    queue: Sender<Settled>,
    metrics: Arc<Metrics>,
    /// What part of the traces that begin here is sampled.
    pub(super) sample: f64,
}

/// Sends what was told.
pub(super) struct Exporter {
    queue: Receiver<Settled>,
    client: reqwest::Client,
    url: Url,
    headers: HeaderMap,
    resource: Resource,
    metrics: Arc<Metrics>,
    observer: Observer,
    /// The last batch was not taken.
    away: bool,
}

/// Why a batch was not taken.
struct Refusal {
    error: String,
    /// Whether it may be taken later, and when to try at the earliest.
    again: bool,
    after: Option<Duration>,
}

pub(super) fn exporter(
    config: &TracesConfig,
    client: reqwest::Client,
    metrics: Arc<Metrics>,
    observer: Observer,
) -> (Tracer, Exporter) {
    let (tell, queue) = channel(QUEUE_MAX);
    let tracer = Tracer { queue: tell, metrics: Arc::clone(&metrics), sample: config.sample };
    let attributes = vec![
        text("service.name", "outboxd"),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("service.instance.id", &Uuid::new_v4().to_string()),
    ];
    let resource = Resource { attributes, ..Resource::default() };
    let (url, headers) = (config.url(), headers(config));
    (tracer, Exporter { queue, client, url, headers, resource, metrics, observer, away: false })
}

/// The configuration has been read, so each of them can be sent.
fn headers(config: &TracesConfig) -> HeaderMap {
    let given = config.headers.iter().filter_map(|(name, value)| {
        let mut value = HeaderValue::from_str(value.expose()).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
    });
    let mut headers: HeaderMap = given.collect();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers
}

impl Tracer {
    /// Tells of an attempt, or drops that.
    pub(super) fn tell(&self, settled: Settled) {
        if self.queue.try_send(settled).is_err() {
            self.metrics.spans_dropped(SPANS);
        }
    }
}

impl Exporter {
    /// Sends until nobody can tell anything any more, and what was told then.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while self.queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let until = tokio::time::Instant::now() + GATHER;
            while batch.len() < BATCH_MAX {
                let room = BATCH_MAX - batch.len();
                match timeout_at(until, self.queue.recv_many(&mut batch, room)).await {
                    Ok(more) if more > 0 => {}
                    // The time is over, or nothing more comes.
                    _ => break,
                }
            }
            let spans = batch.len() * SPANS;
            let body = self.encoded(&batch);
            batch.clear();
            self.export(body, spans).await;
        }
    }

    fn encoded(&self, batch: &[Settled]) -> Bytes {
        let clock = (Instant::now(), Timestamp::now());
        let spans = batch.iter().flat_map(|settled| settled.spans(clock)).collect();
        let (name, version) = ("outboxd".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        let scope = InstrumentationScope { name, version, ..InstrumentationScope::default() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
        let of_daemon =
            ResourceSpans { resource: Some(self.resource.clone()), scope_spans, ..ResourceSpans::default() };
        ExportTraceServiceRequest { resource_spans: vec![of_daemon] }.encode_to_vec().into()
    }

    /// Sends one batch, again and again if that may help, and counts what became of it.
    async fn export(&mut self, body: Bytes, spans: usize) {
        let until = Instant::now() + TRY_FOR;
        let mut pause = AGAIN_MIN;
        loop {
            let Refusal { error, again, after } = match self.post(body.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(spans);
                    self.metrics.spans_exported(spans - rejected);
                    self.metrics.spans_dropped(rejected);
                    return self.is_back();
                }
                Err(refusal) => refusal,
            };
            self.is_away(error);
            let wait = after.unwrap_or(pause.mul_f64(0.5 + 0.5 * fastrand::f64()));
            if !again || self.queue.is_closed() || Instant::now() + wait > until {
                return self.metrics.spans_dropped(spans);
            }
            sleep(wait).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// How many spans of it were not taken.
    async fn post(&self, body: Bytes) -> Result<usize, Refusal> {
        let request = self.client.post(self.url.clone()).headers(self.headers.clone()).body(body);
        let sent = timeout(REQUEST_MAX, async { judge(request.send().await?).await }).await;
        match sent {
            Ok(Ok(judged)) => judged,
            Ok(Err(error)) => Err(Refusal { error: chain(&error.without_url()), again: true, after: None }),
            Err(_) => {
                let error = format!("no answer within {} s", REQUEST_MAX.as_secs());
                Err(Refusal { error, again: true, after: None })
            }
        }
    }

    /// Said once, however many batches meet the same.
    fn is_away(&mut self, error: String) {
        if !std::mem::replace(&mut self.away, true) {
            self.observer.tell(&Observation::SpansRefused { error });
        }
    }

    fn is_back(&mut self) {
        if std::mem::take(&mut self.away) {
            self.observer.tell(&Observation::SpansTaken);
        }
    }
}

/// What an answer says: these four codes ask to try again, every other failure is for good.
async fn judge(mut response: Response) -> Result<Result<usize, Refusal>, reqwest::Error> {
    let status = response.status();
    if status.is_success() {
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            let room = ANSWER_BYTES_MAX.saturating_sub(answer.len());
            answer.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if room <= chunk.len() {
                break;
            }
        }
        // An answer that cannot be read says nothing against the spans.
        let partial = ExportTraceServiceResponse::decode(&answer[..]).ok().and_then(|answer| answer.partial_success);
        return Ok(Ok(partial.map_or(0, |partial| usize::try_from(partial.rejected_spans).unwrap_or_default())));
    }
    let again = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    );
    let asked = response.headers().get(RETRY_AFTER).and_then(|text| retry_after(text.to_str().ok()?, Timestamp::now()));
    Ok(Err(Refusal { error: excerpt(&status.to_string()), again, after: asked }))
}
