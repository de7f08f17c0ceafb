//! A web service that takes everything and says 204.

use std::sync::Once;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::super::Failure;
use super::clock;
use super::part::say;

/// Serves until `stop`; says where first.
pub(super) async fn run(stop: &CancellationToken) -> Result<(), Failure> {
    let failed = |error| Failure::new(format!("cannot listen on 127.0.0.1: {error}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    say(&format!("ready {}", listener.local_addr().map_err(failed)?));
    // The body is read, as a service would.
    let router = Router::new().route("/", post(async |_: axum::body::Bytes| accept()));
    tokio::select! {
        served = axum::serve(listener, router) => served.map_err(failed),
        () = stop.cancelled() => Ok(()),
    }
}

fn accept() -> StatusCode {
    static REQUESTS: Once = Once::new();
    REQUESTS.call_once(|| say(&format!("first {}", clock::now())));
    StatusCode::NO_CONTENT
}
