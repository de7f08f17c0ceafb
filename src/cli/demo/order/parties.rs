//! The third parties: a payment provider whose callbacks get lost, come twice or too early, a carrier that goes down for a
//! while, and a seller. They honour the idempotency key, and remember what they have done.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use fastrand::Rng;
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;

use super::super::super::Failure;
use super::super::service::{Answer, Service, answer, is_first, locked, request};

/// How long a payment takes, in milliseconds.
const PAYMENT_MS: std::ops::Range<u64> = 20..400;
/// How long the carrier takes to answer, in milliseconds.
const CARRIER_MS: std::ops::Range<u64> = 5..120;

/// The running services; they end with this value.
pub(super) struct Parties {
    service: Service,
    world: Arc<World>,
}

/// What they know.
struct World {
    client: reqwest::Client,
    carrier_is_down: AtomicBool,
    books: Mutex<Books>,
    faults: Faults,
    /// Payments that are being checked. They end with the services.
    checks: Mutex<JoinSet<()>>,
}

/// How often each fault has happened.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) lost: AtomicU64,
    pub(super) doubled: AtomicU64,
    pub(super) early: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) down: AtomicU64,
}

#[derive(Default)]
struct Books {
    payments: HashMap<i64, Payment>,
    refunds: BTreeMap<i64, u32>,
    parcels: BTreeMap<i64, u32>,
    cancelled: BTreeMap<i64, u32>,
    messages: BTreeMap<i64, u32>,
    /// The key of what was done for an order. One that comes again does nothing.
    keys: HashMap<String, i64>,
}

/// A payment as the provider sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Payment {
    /// It is being checked.
    Pending,
    Charged,
    /// The card was refused.
    Refused,
    /// It was given back, or is never to be taken.
    Void,
}

#[derive(Deserialize)]
struct Request {
    payload: Order,
}

#[derive(Deserialize)]
struct Order {
    order: i64,
}

/// Chance that is the same for an order whenever it is asked.
fn chance(order: i64, of: u64) -> Rng {
    Rng::with_seed(order.cast_unsigned().wrapping_mul(1000).wrapping_add(of))
}

impl Parties {
    pub(super) async fn start() -> Result<Self, Failure> {
        let client = crate::handler::http::client()
            .map_err(|error| Failure::internal(format!("the HTTP client could not be set up: {error}")))?;
        let (carrier_is_down, books, faults) = (AtomicBool::new(false), Mutex::default(), Faults::default());
        let world = Arc::new(World { client, carrier_is_down, books, faults, checks: Mutex::default() });
        let router = Router::new()
            .route("/charge", post(charge))
            .route("/refund", post(refund))
            .route("/parcel", post(parcel))
            .route("/parcel/cancel", post(cancel_parcel))
            .route("/seller", post(seller))
            .with_state(Arc::clone(&world));
        Ok(Self { service: Service::start(router).await?, world })
    }

    pub(super) fn url(&self) -> String {
        self.service.url()
    }

    pub(super) fn carrier(&self, is_down: bool) {
        self.world.carrier_is_down.store(is_down, Ordering::Relaxed);
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.world.faults
    }

    /// What they have done, as `(what, order, how often)`.
    pub(super) fn done(&self) -> Vec<(&'static str, i64, u32)> {
        let books = self.world.books();
        let charged = |payment: &Payment| matches!(payment, Payment::Charged | Payment::Void);
        let charges = books.payments.iter().filter(|(order, payment)| {
            // One that was never taken and is not to be is no charge.
            charged(payment) && (**payment == Payment::Charged || books.refunds.contains_key(order))
        });
        let charges = charges.map(|(&order, _)| ("charge", order, 1));
        let each = |what, of: &BTreeMap<i64, u32>| {
            of.iter().map(move |(&order, &times)| (what, order, times)).collect::<Vec<_>>()
        };
        charges
            .chain(each("refund", &books.refunds))
            .chain(each("parcel", &books.parcels))
            .chain(each("cancelled parcel", &books.cancelled))
            .chain(each("message", &books.messages))
            .collect()
    }
}

impl World {
    fn books(&self) -> MutexGuard<'_, Books> {
        locked(&self.books)
    }
}

impl Books {
    /// Whether this is the first time that this key comes.
    fn is_new(&mut self, headers: &HeaderMap, order: i64) -> bool {
        let key = headers.get("idempotency-key").map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
        key.is_some_and(|key| self.keys.insert(key, order).is_none())
    }
}

/// Takes the money, and says so later. Whoever asks again is told how far it is.
async fn charge(State(world): State<Arc<World>>, headers: HeaderMap, body: Bytes) -> Answer {
    let order = match request::<Request>(&body).map(|request| request.payload.order) {
        Ok(order) => order,
        Err(wrong) => return wrong,
    };
    let known = {
        let mut books = world.books();
        let known = books.payments.get(&order).copied();
        books.payments.entry(order).or_insert(Payment::Pending);
        known
    };
    if known.is_none() {
        let callback = headers.get("outbox-callback").map(|url| String::from_utf8_lossy(url.as_bytes()).into_owned());
        let mut chance = chance(order, 1);
        if chance.f64() < 0.05 {
            world.faults.early.fetch_add(1, Ordering::Relaxed);
            // Before its own 202.
            decide(&world, order, callback).await;
        } else {
            let checked = Arc::downgrade(&world);
            let pause = Duration::from_millis(chance.u64(PAYMENT_MS));
            let mut checks = locked(&world.checks);
            while checks.try_join_next().is_some() {}
            checks.spawn(async move {
                tokio::time::sleep(pause).await;
                if let Some(world) = checked.upgrade() {
                    decide(&world, order, callback).await;
                }
            });
        }
        return answer(StatusCode::ACCEPTED, &json!({ "outcome": "wait" }));
    }
    match known {
        Some(Payment::Charged) => answer(StatusCode::OK, &json!({ "charge": order })),
        Some(Payment::Refused) => {
            answer(StatusCode::OK, &json!({ "outcome": "dead", "error": "the card was refused" }))
        }
        Some(Payment::Void) => {
            answer(StatusCode::OK, &json!({ "outcome": "dead", "error": "the payment was called off" }))
        }
        Some(Payment::Pending) | None => answer(StatusCode::ACCEPTED, &json!({ "outcome": "wait" })),
    }
}

/// The card is good or not; the shop is told, if the callback does not get lost.
async fn decide(world: &Arc<World>, order: i64, callback: Option<String>) {
    let mut chance = chance(order, 2);
    let good = chance.f64() >= 0.05;
    {
        let mut books = world.books();
        let Some(payment) = books.payments.get_mut(&order).filter(|payment| **payment == Payment::Pending) else {
            return;
        };
        *payment = if good { Payment::Charged } else { Payment::Refused };
    }
    if !good {
        world.faults.refused.fetch_add(1, Ordering::Relaxed);
    }
    let said =
        if good { json!({ "charge": order }) } else { json!({ "outcome": "dead", "error": "the card was refused" }) };
    let (lost, doubled) = (chance.f64() < 0.30, chance.f64() < 0.10);
    if lost {
        world.faults.lost.fetch_add(1, Ordering::Relaxed);
        return;
    }
    if doubled {
        world.faults.doubled.fetch_add(1, Ordering::Relaxed);
    }
    for _ in 0..=u8::from(doubled) {
        if let Some(url) = &callback {
            // A daemon that is down does not hear it.
            let _ = world.client.post(url).body(said.to_string()).send().await;
        }
    }
}

/// Gives the money back, if it was taken, and takes none later.
async fn refund(State(world): State<Arc<World>>, headers: HeaderMap, body: Bytes) -> Answer {
    let order = match request::<Request>(&body).map(|request| request.payload.order) {
        Ok(order) => order,
        Err(wrong) => return wrong,
    };
    let mut books = world.books();
    if books.is_new(&headers, order) {
        let was = books.payments.insert(order, Payment::Void);
        if was == Some(Payment::Charged) {
            *books.refunds.entry(order).or_default() += 1;
        }
    }
    answer(StatusCode::OK, &json!({ "refunded": books.refunds.contains_key(&order) }))
}

/// Slow, and down for a while. One address in fifty does not exist.
async fn parcel(State(world): State<Arc<World>>, headers: HeaderMap, body: Bytes) -> Answer {
    let order = match request::<Request>(&body).map(|request| request.payload.order) {
        Ok(order) => order,
        Err(wrong) => return wrong,
    };
    if world.carrier_is_down.load(Ordering::Relaxed) {
        world.faults.down.fetch_add(1, Ordering::Relaxed);
        return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "down for maintenance" }));
    }
    let mut chance = chance(order, 3);
    tokio::time::sleep(Duration::from_millis(chance.u64(CARRIER_MS))).await;
    if chance.u8(..50) == 0 {
        return answer(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "error": "there is no such address" }));
    }
    let mut books = world.books();
    if books.is_new(&headers, order) {
        *books.parcels.entry(order).or_default() += 1;
    }
    answer(StatusCode::OK, &json!({ "parcel": format!("P{order}") }))
}

async fn cancel_parcel(State(world): State<Arc<World>>, headers: HeaderMap, body: Bytes) -> Answer {
    let order = match request::<Request>(&body).map(|request| request.payload.order) {
        Ok(order) => order,
        Err(wrong) => return wrong,
    };
    let mut books = world.books();
    if books.is_new(&headers, order) && books.parcels.contains_key(&order) {
        *books.cancelled.entry(order).or_default() += 1;
    }
    answer(StatusCode::OK, &json!({}))
}

/// One message in thirty is not taken at first.
async fn seller(State(world): State<Arc<World>>, headers: HeaderMap, body: Bytes) -> Answer {
    let order = match request::<Request>(&body).map(|request| request.payload.order) {
        Ok(order) => order,
        Err(wrong) => return wrong,
    };
    if is_first(&headers) && order % 30 == 7 {
        return answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": "try again" }));
    }
    let mut books = world.books();
    if books.is_new(&headers, order) {
        *books.messages.entry(order).or_default() += 1;
    }
    answer(StatusCode::OK, &json!({}))
}
