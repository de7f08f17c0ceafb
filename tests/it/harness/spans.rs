//! A receiver of traces: OTLP over HTTP, decoded.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use super::until;

/// What it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Takes,
    /// It takes all but one of each request.
    TakesAllButOne,
    Answers(StatusCode),
    Hangs,
}

/// It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Collector {
    pub(crate) endpoint: String,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    mood: Mood,
    requests: Vec<HeaderMap>,
    resources: Vec<KeyValue>,
    spans: Vec<Span>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Seen { mood: Mood::Takes, requests: Vec::new(), resources: Vec::new(), spans: Vec::new() };
        let collector = Self { endpoint, seen: Arc::new(Mutex::new(seen)) };
        let receives = collector.clone();
        let router = Router::new().fallback(async move |uri: Uri, headers: HeaderMap, body: Bytes| {
            assert_eq!(uri.path(), "/v1/traces");
            receives.receive(headers, &body).await
        });
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        collector
    }

    async fn receive(&self, headers: HeaderMap, body: &[u8]) -> (StatusCode, Vec<u8>) {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let mood = {
            let mut seen = self.seen.lock().unwrap();
            seen.requests.push(headers);
            if matches!(seen.mood, Mood::Takes | Mood::TakesAllButOne) {
                for of_resource in request.resource_spans {
                    seen.resources = of_resource.resource.unwrap().attributes;
                    seen.spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
                }
            }
            seen.mood
        };
        let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "one too many".to_owned() };
        let answer = |partial_success| ExportTraceServiceResponse { partial_success }.encode_to_vec();
        match mood {
            Mood::Takes => (StatusCode::OK, answer(None)),
            Mood::TakesAllButOne => (StatusCode::OK, answer(Some(partial))),
            Mood::Answers(status) => (status, Vec::new()),
            Mood::Hangs => std::future::pending().await,
        }
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.seen.lock().unwrap().mood = mood;
    }

    /// The headers of every request so far.
    pub(crate) fn requests(&self) -> Vec<HeaderMap> {
        self.seen.lock().unwrap().requests.clone()
    }

    /// What it was told about who sends them.
    pub(crate) fn resource(&self, name: &str) -> String {
        text(&self.seen.lock().unwrap().resources, name)
    }

    /// Waits for so many spans; all of them.
    #[track_caller]
    pub(crate) fn spans(&self, count: usize) -> impl Future<Output = Vec<Span>> {
        let there = until(&format!("{count} spans are there"), move || {
            std::future::ready(self.seen.lock().unwrap().spans.len() >= count)
        });
        async move {
            there.await;
            self.seen.lock().unwrap().spans.clone()
        }
    }
}

/// The value of a span's attribute, as text; empty without it.
pub(crate) fn attribute(span: &Span, name: &str) -> String {
    text(&span.attributes, name)
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let value =
        attributes.iter().find(|attribute| attribute.key == name).and_then(|found| found.value.as_ref()?.value.clone());
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(other) => panic!("{name} is {other:?}"),
        None => String::new(),
    }
}

/// An id as people read it.
pub(crate) fn id(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |id, byte| format!("{id}{byte:02x}"))
}
