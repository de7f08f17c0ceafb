//! The web services of the larger demos: third parties that answer with JSON, and are asked by a flow.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::super::Failure;

/// A running service; it ends with this value.
pub(super) struct Service {
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Service {
    pub(super) async fn start(router: Router) -> Result<Self, Failure> {
        let failed = |error| Failure::new(format!("cannot listen on 127.0.0.1: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            // It has no error: axum tries again what fails.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, _task: task })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

pub(super) type Answer = (StatusCode, [(HeaderName, &'static str); 1], String);

pub(super) fn answer(status: StatusCode, body: &Value) -> Answer {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string())
}

/// What a step was called with, or the answer to what is none.
pub(super) fn request<T: DeserializeOwned>(body: &Bytes) -> Result<T, Answer> {
    serde_json::from_slice(body)
        .map_err(|error| answer(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "error": error.to_string() })))
}

/// Whether this is the first attempt of a delivery.
pub(super) fn is_first(headers: &HeaderMap) -> bool {
    headers.get("outbox-attempt").is_some_and(|attempt| attempt == "1")
}

/// A service that panicked leaves what it knew.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
