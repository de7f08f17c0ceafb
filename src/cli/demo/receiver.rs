//! The other side of the mail handler: a web service that believes only what is signed, and remembers who got a mail.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::hmac;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::super::Failure;

/// How old a signature may be, in seconds, so that a message overheard cannot be sent again much later.
const AGE_MAX: u64 = 300;
/// Users who are remembered; the live mode may run for days.
const USERS_MAX: usize = 100_000;

/// The running service; it ends with this value.
pub(super) struct Receiver {
    address: SocketAddr,
    mails: Arc<Mails>,
    _task: JoinSet<()>,
}

/// What it knows.
struct Mails {
    key: hmac::Key,
    /// Mails by user.
    sent: Mutex<HashMap<i64, u32>>,
}

#[derive(Deserialize)]
struct Registered {
    /// The app's id; a row inserted by hand has none.
    user: Option<i64>,
    name: String,
}

impl Receiver {
    pub(super) async fn start(key: &[u8]) -> Result<Self, Failure> {
        let failed = |error| Failure::new(format!("cannot listen on 127.0.0.1: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mails = Arc::new(Mails { key: hmac::Key::new(hmac::HMAC_SHA256, key), sent: Mutex::default() });
        let router = Router::new().route("/welcome", post(welcome)).with_state(Arc::clone(&mails));
        let mut task = JoinSet::new();
        task.spawn(async move {
            // It has no error: axum tries again what fails.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, mails, _task: task })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/welcome", self.address)
    }

    /// How many mails each user got.
    pub(super) fn mails(&self) -> HashMap<i64, u32> {
        self.mails.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn welcome(
    State(mails): State<Arc<Mails>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, HeaderMap, &'static str) {
    let answer = |status, text| (status, HeaderMap::new(), text);
    if !is_signed(&mails.key, &headers, &body, Timestamp::now()) {
        return answer(StatusCode::UNAUTHORIZED, "the signature is not right\n");
    }
    let Ok(Registered { user, name }) = serde_json::from_slice(&body) else {
        return answer(StatusCode::UNPROCESSABLE_ENTITY, "the payload has no \"name\"\n");
    };
    if name.is_empty() {
        return answer(StatusCode::UNPROCESSABLE_ENTITY, "the name is empty\n");
    }
    if let Some(user) = user {
        let mut sent = mails.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.len() < USERS_MAX || sent.contains_key(&user) {
            *sent.entry(user).or_default() += 1;
        }
    }
    let json = [(CONTENT_TYPE, axum::http::HeaderValue::from_static("application/json"))];
    (StatusCode::OK, json.into_iter().collect(), r#"{"mail": "sent"}"#)
}

/// Whether one of the signatures is right, as <https://www.standardwebhooks.com> asks a receiver to verify.
fn is_signed(key: &hmac::Key, headers: &HeaderMap, body: &[u8], now: Timestamp) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (id, timestamp) = (text("webhook-id"), text("webhook-timestamp"));
    let Ok(signed_at) = timestamp.parse::<i64>() else { return false };
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    let right = |signature: &str| {
        let tag = signature.strip_prefix("v1,").and_then(|encoded| STANDARD.decode(encoded).ok());
        tag.is_some_and(|tag| hmac::verify(key, &signed, &tag).is_ok())
    };
    now.as_second().abs_diff(signed_at) <= AGE_MAX && text("webhook-signature").split(' ').any(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fresh_signature_over_this_very_message_is_right() {
        const BODY: &[u8] = br#"{"name": "Ada"}"#;
        let now = Timestamp::now();
        let (key, other) = ([1; 32], [2; 32]);
        let signed = |secret: &[u8], age: i64| {
            let at = now.as_second() - age;
            let webhook = standardwebhooks::Webhook::from_bytes(secret.to_vec()).unwrap();
            let headers = [
                ("webhook-id", "id".to_owned()),
                ("webhook-timestamp", at.to_string()),
                ("webhook-signature", format!("v1,AAAA {}", webhook.sign("id", at, BODY).unwrap())),
            ];
            headers.into_iter().map(|(name, text)| (name.parse().unwrap(), text.parse().unwrap())).collect()
        };
        let is_right =
            |headers: &HeaderMap, body: &[u8]| is_signed(&hmac::Key::new(hmac::HMAC_SHA256, &key), headers, body, now);
        assert!(is_right(&signed(&key, 0), BODY));
        assert!(!is_right(&signed(&key, 0), b"{}"));
        assert!(!is_right(&signed(&key, 301), BODY));
        assert!(!is_right(&signed(&other, 0), BODY));
        assert!(!is_right(&HeaderMap::new(), BODY));
    }
}
