//! The daemon's own port: `/healthz`, `/readyz`, which ask PostgreSQL nothing; `/metrics`, `/callback/TOKEN` and `/events/ID`, which
//! do, on sessions of their own. It needs nothing of the loop that dispatches, so it answers when that hangs.
//!
//! A connection is for one request and lives for 80 s at most, and there are only so many: a slow client costs nothing.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::desk::{self, Desk, WAIT_MAX};
use super::gauges::Gauges;
use super::health::Health;
use crate::handler::answer::BYTES_MAX;
use crate::metrics::{self, Metrics};
use crate::observe::{Observation, Observer};

/// More connections wait until one of these has ended.
const CONNECTIONS_MAX: usize = 64;
/// How long the head of a request, and its body, may take to come.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// The longest a connection lives, whatever it does not read: somebody may have waited for an event.
const CONNECTION_MAX: Duration = Duration::from_secs(WAIT_MAX.as_secs() + 2 * REQUEST_MAX.as_secs());
/// The largest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// After a connection could not be taken, for want of descriptors for example.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// The open port. It ends with this value.
pub(super) struct Port {
    tasks: JoinSet<()>,
}

/// What the answers are made of.
pub(super) struct Answers {
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) desk: Desk,
    pub(super) gauges: Gauges,
}

impl Port {
    /// Opens it, and says where it is; a port that is taken is an error, at once.
    pub(super) async fn open(
        address: SocketAddr,
        answers: Answers,
        observer: Observer,
    ) -> std::io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        observer.tell(&Observation::Listening { address });
        let router = Router::new()
            .route("/metrics", get(all))
            .route("/healthz", get(lives))
            .route("/readyz", get(is_ready))
            .route("/callback/{token}", post(answer))
            .route("/events/{id}", get(event))
            .with_state(Arc::new(answers));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, router, observer));
        Ok((Self { tasks }, address))
    }

    /// Ends it and waits for that.
    pub(super) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn serve(listener: TcpListener, router: Router, observer: Observer) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(tokio::time::timeout(CONNECTION_MAX, one_request(stream, router.clone())));
            }
            Err(error) => {
                let doing = "taking a connection on the daemon's own port";
                observer.tell(&Observation::Hiccup { doing, error: error.to_string() });
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn one_request(stream: TcpStream, router: Router) {
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(HEAD_BYTES_MAX).timer(TokioTimer::new()).header_read_timeout(REQUEST_MAX);
    // What goes wrong is between the client and its own request.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

async fn all(State(answers): State<Arc<Answers>>) -> impl IntoResponse {
    answers.gauges.refresh(&answers.metrics).await;
    match answers.metrics.text() {
        Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, metrics::CONTENT_TYPE)], text),
        Err(error) => {
            let plain = "text/plain; charset=utf-8";
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, plain)], format!("{error}\n"))
        }
    }
}

async fn lives(State(answers): State<Arc<Answers>>) -> (StatusCode, String) {
    line(answers.health.lives(Instant::now()))
}

async fn is_ready(State(answers): State<Arc<Answers>>) -> (StatusCode, String) {
    line(answers.health.is_ready(Instant::now()))
}

async fn answer(State(answers): State<Arc<Answers>>, Path(token): Path<String>, body: Body) -> Response {
    let body = tokio::time::timeout(REQUEST_MAX, axum::body::to_bytes(body, BYTES_MAX)).await;
    match body {
        Ok(Ok(body)) => answers.desk.answer(&token, &body).await,
        Ok(Err(_)) => {
            desk::refused(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body has more than {BYTES_MAX} bytes"))
        }
        Err(_) => desk::refused(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    }
}

async fn event(State(answers): State<Arc<Answers>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> Response {
    answers.desk.event(&id, query.as_deref()).await
}

fn line(answer: Result<impl Display, String>) -> (StatusCode, String) {
    match answer {
        Ok(text) => (StatusCode::OK, format!("{text}\n")),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
