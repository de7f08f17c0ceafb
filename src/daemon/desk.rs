//! What others ask the daemon's own port: the answers of callbacks, and how far an event is. A standby answers as well as the
//! leader: everything is in the database.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use deadpool_postgres::{Client, Pool};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;

use crate::callback::{CallbackKey, Callee, TokenError};
use crate::config::duration;
use crate::handler::answer::{self, Answer};
use crate::observe::{Observation, Observer};
use crate::outcome::{Failure, Outcome, RESULT_BYTES_MAX};
use crate::store::answers::{self, Said};

/// How long a question waits for the database.
const DATABASE_MAX: Duration = Duration::from_secs(5);
/// Callbacks in a second, and those of one delivery among them. Forged ones do not count: they cost nothing but their code.
const CALLBACKS_MAX: usize = 1000;
const CALLBACKS_OF_ONE_MAX: usize = 5;
/// The longest that somebody may wait for an event; and so many may, that others are still answered.
pub(super) const WAIT_MAX: Duration = Duration::from_mins(1);
const WAITERS_MAX: usize = 32;
/// Between two looks at an event that somebody waits for: from the first to the second, half as long again every time.
const LOOK_MIN: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_millis(250);

pub(super) struct Desk {
    pool: Pool,
    key: OnceCell<CallbackKey>,
    seen: Mutex<Seen>,
    waiters: Semaphore,
    observer: Observer,
}

/// The callbacks of the present second.
struct Seen {
    since: Instant,
    all: usize,
    by_delivery: HashMap<(i64, String), usize>,
}

impl Desk {
    pub(super) fn new(pool: Pool, observer: Observer) -> Self {
        let seen = Seen { since: Instant::now(), all: 0, by_delivery: HashMap::new() };
        Self { pool, key: OnceCell::new(), seen: Mutex::new(seen), waiters: Semaphore::new(WAITERS_MAX), observer }
    }

    /// Takes the answer for the delivery that the token names.
    pub(super) async fn answer(&self, token: &str, body: &Bytes) -> Response {
        match timeout(DATABASE_MAX, self.take(token, body)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => self.out_of_order(&error),
            Err(_) => self.out_of_order("the database did not answer in time"),
        }
    }

    async fn take(&self, token: &str, body: &Bytes) -> Result<Response, String> {
        // The database is asked for nothing but what has a token.
        let key = self.key.get_or_try_init(|| self.read_key()).await?;
        let callee = match key.read(token, Timestamp::now()) {
            Ok(callee) => callee,
            Err(error @ TokenError::Forged) => return Ok(refused(StatusCode::NOT_FOUND, &error.to_string())),
            Err(error @ TokenError::Expired) => return Ok(refused(StatusCode::GONE, &error.to_string())),
        };
        if !self.may_answer(&callee, Instant::now()) {
            let mut response = refused(StatusCode::TOO_MANY_REQUESTS, "too many callbacks; try again in a second");
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return Ok(response);
        }
        let said = match said(body) {
            Ok(said) => said,
            Err(error) => return Ok(refused(StatusCode::UNPROCESSABLE_ENTITY, &error)),
        };
        let client = self.client().await?;
        self.give(&client, &callee, &said).await.map_err(|error| error.to_string())
    }

    async fn client(&self) -> Result<Client, String> {
        self.pool.get().await.map_err(|error| error.to_string())
    }

    async fn read_key(&self) -> Result<CallbackKey, String> {
        answers::callback_key(&self.client().await?).await.map_err(|error| error.to_string())
    }

    async fn give(&self, client: &Client, callee: &Callee, said: &Said) -> Result<Response, crate::store::Error> {
        if let Some(answers::Answered { attempt, trace }) = answers::answer(client, callee, said).await? {
            let (event, handler, done) = (callee.event, callee.handler.as_str().into(), matches!(said, Said::Done(_)));
            self.observer.tell(&Observation::Answered { event, handler, attempt, trace, done });
            return Ok(with_json(StatusCode::OK, &json!({ "accepted": true })));
        }
        let state = answers::delivery_state(client, callee).await?;
        // Whoever says the same thing twice need not say it a third time.
        let agrees = matches!((said, state.as_deref()), (Said::Done(_), Some("done")));
        let status = if agrees { StatusCode::OK } else { StatusCode::CONFLICT };
        let error = match &state {
            Some(state) => format!("the delivery is {state}: this changes nothing"),
            None => "the delivery is not there to be answered: this changes nothing".to_owned(),
        };
        Ok(with_json(status, &json!({ "accepted": false, "state": state, "error": error })))
    }

    /// Whether this callback is within what is taken in a second.
    fn may_answer(&self, callee: &Callee, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(seen.since) >= Duration::from_secs(1) {
            *seen = Seen { since: now, all: 0, by_delivery: HashMap::new() };
        }
        if seen.all >= CALLBACKS_MAX {
            return false;
        }
        seen.all += 1;
        let of_one = seen.by_delivery.entry((callee.event.0, callee.handler.clone())).or_default();
        *of_one += 1;
        *of_one <= CALLBACKS_OF_ONE_MAX
    }

    /// How far an event is, at once or when it has ended.
    pub(super) async fn event(&self, id: &str, query: Option<&str>) -> Response {
        let Ok(event) = id.parse::<i64>() else {
            return refused(StatusCode::BAD_REQUEST, &format!("{:?} is not the id of an event", answer::quote(id)));
        };
        let wait = match wait(query) {
            Ok(wait) => wait,
            Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
        };
        let permit = if wait.is_zero() { None } else { Some(self.waiters.try_acquire()) };
        if let Some(Err(_)) = permit {
            return self.out_of_order(&format!("{WAITERS_MAX} wait for events already"));
        }
        let until = Instant::now() + wait;
        let mut pause = LOOK_MIN;
        loop {
            let standing = match timeout(DATABASE_MAX, self.standing(event)).await {
                Ok(Ok(Some(standing))) => standing,
                Ok(Ok(None)) => {
                    return refused(StatusCode::NOT_FOUND, &format!("there is no event {event}, or no more"));
                }
                Ok(Err(error)) => return self.out_of_order(&error),
                Err(_) => return self.out_of_order("the database did not answer in time"),
            };
            let left = until.saturating_duration_since(Instant::now());
            if standing.ended || left.is_zero() {
                let told = json!({ "event_id": event, "ended": standing.ended, "deliveries": standing.deliveries });
                return with_json(StatusCode::OK, &told);
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 3 / 2).min(LOOK_MAX);
        }
    }

    async fn standing(&self, event: i64) -> Result<Option<answers::Standing>, String> {
        answers::event_states(&self.client().await?, event).await.map_err(|error| error.to_string())
    }

    fn out_of_order(&self, error: &str) -> Response {
        let doing = "answering on the daemon's own port";
        self.observer.tell(&Observation::Hiccup { doing, error: error.to_owned() });
        // What went wrong is nobody else's business.
        let mut response = refused(StatusCode::SERVICE_UNAVAILABLE, "not now; try again in a second");
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }
}

/// What the body of a callback says: an answer like that of a handler, or the result of a success.
fn said(body: &[u8]) -> Result<Said, String> {
    if body.trim_ascii().is_empty() {
        return Ok(Said::Done(None));
    }
    if serde_json::from_slice::<serde::de::IgnoredAny>(body).is_err() {
        return Err("the body is not JSON".to_owned());
    }
    let failed = |failure: Failure, dead| Ok(Said::Failed { error: failure.error, dead });
    match answer::parse(body) {
        Answer::Absent { result: Some(result) } => kept(result),
        Answer::Absent { result: None } => {
            Err(format!("the body has {} bytes; at most {RESULT_BYTES_MAX} can be kept as the result", body.len()))
        }
        Answer::Given(Outcome::Done { result: None, emit }) if emit.is_empty() => Ok(Said::Done(None)),
        Answer::Given(Outcome::Done { result: Some(result), emit }) if emit.is_empty() => kept(result),
        // One that cannot be understood has a response, which is the body.
        Answer::Given(Outcome::Retry { after: None, failure }) if failure.response.is_none() => failed(failure, false),
        Answer::Given(Outcome::Retry { failure, .. }) if failure.response.is_some() => Err(failure.error),
        Answer::Given(Outcome::Dead { failure }) => failed(failure, true),
        Answer::Given(_) => {
            Err("a callback's \"outcome\" is \"done\" with a \"result\", or \"retry\" or \"dead\" with an \"error\""
                .to_owned())
        }
    }
}

fn kept(result: Value) -> Result<Said, String> {
    match crate::outcome::bounded(result.clone()) {
        same if same == result => Ok(Said::Done(Some(result))),
        note => Err(note["outboxd"].as_str().unwrap_or("the result cannot be kept").to_owned()),
    }
}

/// How long the query asks to wait: `wait=30s`.
fn wait(query: Option<&str>) -> Result<Duration, String> {
    let Some(text) = query.and_then(|query| query.split('&').find_map(|part| part.strip_prefix("wait="))) else {
        return Ok(Duration::ZERO);
    };
    match duration::parse(text) {
        Ok(wait) if wait <= WAIT_MAX => Ok(wait),
        _ => {
            let longest = duration::format(WAIT_MAX);
            Err(format!("wait is {:?}; it must be a duration such as 30s, at most {longest}", answer::quote(text)))
        }
    }
}

pub(super) fn refused(status: StatusCode, error: &str) -> Response {
    with_json(status, &json!({ "accepted": false, "error": error }))
}

fn with_json(status: StatusCode, value: &Value) -> Response {
    let headers: [(HeaderName, &str); 1] = [(CONTENT_TYPE, "application/json")];
    (status, headers, format!("{value}\n")).into_response()
}
