//! The third parties: a service that reads documents, slowly, dies and forgets what it was doing; and a search index that is busy now
//! and then, and refuses some documents for good.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::super::Failure;
use super::super::service::{Answer, Service, answer, is_first, locked, request};

/// How long a document takes to be read, in milliseconds.
const READING_MS: std::ops::Range<u64> = 50..1500;

/// The running services; they end with this value.
pub(super) struct Parties {
    service: Service,
    world: Arc<World>,
}

#[derive(Default)]
struct World {
    reader_is_dead: AtomicBool,
    /// When each document that is being read will have been.
    reading: Mutex<HashMap<i64, Instant>>,
    /// What the index holds, and how often it was written.
    index: Mutex<BTreeMap<i64, (String, u32)>>,
    asked: AtomicU64,
    forgotten: AtomicU64,
    busy: AtomicU64,
}

#[derive(Deserialize)]
struct Request {
    payload: Document,
    results: Value,
}

#[derive(Deserialize)]
struct Document {
    document: i64,
}

/// What stands in a document.
pub(super) fn text_of(document: i64) -> String {
    format!("the text of document {document}")
}

impl Parties {
    pub(super) async fn start() -> Result<Self, Failure> {
        let world = Arc::new(World::default());
        let router =
            Router::new().route("/read", post(read)).route("/index", post(index)).with_state(Arc::clone(&world));
        Ok(Self { service: Service::start(router).await?, world })
    }

    pub(super) fn url(&self) -> String {
        self.service.url()
    }

    /// The service that reads dies, and forgets everything, or comes back.
    pub(super) fn reader(&self, is_dead: bool) {
        self.world.reader_is_dead.store(is_dead, Ordering::Relaxed);
        if is_dead {
            let forgotten = std::mem::take(&mut *locked(&self.world.reading)).len();
            self.world.forgotten.fetch_add(forgotten.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// What the index holds, as `(document, text, how often it was written)`.
    pub(super) fn index(&self) -> Vec<(i64, String, u32)> {
        locked(&self.world.index).iter().map(|(&document, (text, times))| (document, text.clone(), *times)).collect()
    }

    pub(super) fn told(&self) -> String {
        let World { asked, forgotten, busy, .. } = &*self.world;
        let [asked, forgotten, busy] = [asked, forgotten, busy].map(|count| count.load(Ordering::Relaxed));
        format!("asked {asked} times, {forgotten} documents forgotten; the index was busy {busy} times")
    }
}

async fn read(State(world): State<Arc<World>>, body: Bytes) -> Answer {
    let document = match request::<Request>(&body) {
        Ok(request) => request.payload.document,
        Err(wrong) => return wrong,
    };
    if world.reader_is_dead.load(Ordering::Relaxed) {
        return answer(StatusCode::BAD_GATEWAY, &json!({ "error": "nobody is there" }));
    }
    world.asked.fetch_add(1, Ordering::Relaxed);
    if document % 50 == 13 {
        return answer(StatusCode::OK, &json!({ "outcome": "dead", "error": "the page is blank" }));
    }
    let mut reading = locked(&world.reading);
    let takes = || Instant::now() + Duration::from_millis(fastrand::u64(READING_MS));
    if *reading.entry(document).or_insert_with(takes) > Instant::now() {
        return answer(StatusCode::ACCEPTED, &json!({ "outcome": "snooze" }));
    }
    answer(StatusCode::OK, &json!({ "text": text_of(document) }))
}

async fn index(State(world): State<Arc<World>>, headers: HeaderMap, body: Bytes) -> Answer {
    let Request { payload: Document { document }, results } = match request(&body) {
        Ok(request) => request,
        Err(wrong) => return wrong,
    };
    if document % 40 == 7 {
        return answer(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "error": "the field \"text\" has no mapping" }));
    }
    if is_first(&headers) && document % 10 == 3 {
        world.busy.fetch_add(1, Ordering::Relaxed);
        return answer(StatusCode::TOO_MANY_REQUESTS, &json!({ "error": "too many writes" }));
    }
    let text = results["read"]["text"].as_str().unwrap_or_default().to_owned();
    // As an index does it: whoever writes a document again replaces it.
    let mut index = locked(&world.index);
    let times = index.get(&document).map_or(0, |(_, times)| *times) + 1;
    index.insert(document, (text, times));
    answer(StatusCode::OK, &json!({}))
}
