//! Callback tokens: who knows one may answer for one delivery.
//!
//! A token names the delivery and the time after which it counts no more, and carries a code over both
//! (HMAC-SHA256, <https://www.rfc-editor.org/rfc/rfc2104>) that only the installation's key makes. So it cannot be guessed or
//! changed, nothing has to be stored for it, and every daemon of the installation understands it. Pure.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::hmac;

use crate::event::{Event, EventId};

/// How long a token counts. A delivery that waits longer gets a new one when it is asked again.
pub const VALID: Duration = Duration::from_hours(30 * 24);
/// The longest text that is taken for a token, in bytes. The longest token has less.
pub const TOKEN_BYTES_MAX: usize = 256;

/// The installation's key.
#[derive(Clone)]
pub struct CallbackKey(hmac::Key);

/// The delivery that a token answers for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callee {
    pub event: EventId,
    /// With the id it names an event even after a failover that gave the id out again.
    pub created_at: Timestamp,
    pub handler: String,
}

/// Why a token is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("there is no such callback")]
    Forged,
    #[error("this callback has expired")]
    Expired,
}

impl CallbackKey {
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The token for a delivery of this event, good for [`VALID`].
    #[must_use]
    pub fn token(&self, event: &Event, handler: &str, now: Timestamp) -> String {
        let valid = i64::try_from(VALID.as_secs()).unwrap_or(i64::MAX);
        let expires = now.as_second().saturating_add(valid);
        let claim = format!("{}.{}.{expires}.{handler}", event.id, event.created_at.as_microsecond());
        let code = hmac::sign(&self.0, claim.as_bytes());
        format!("{}.{}", URL_SAFE_NO_PAD.encode(claim), URL_SAFE_NO_PAD.encode(code))
    }

    /// Whose token it is. The code is compared in constant time.
    pub fn read(&self, token: &str, now: Timestamp) -> Result<Callee, TokenError> {
        let (callee, expires) = self.claim(token).ok_or(TokenError::Forged)?;
        if now.as_second() < expires { Ok(callee) } else { Err(TokenError::Expired) }
    }

    fn claim(&self, token: &str) -> Option<(Callee, i64)> {
        let (claim, code) = token.split_once('.').filter(|_| token.len() <= TOKEN_BYTES_MAX)?;
        let claim = URL_SAFE_NO_PAD.decode(claim).ok()?;
        let code = URL_SAFE_NO_PAD.decode(code).ok()?;
        hmac::verify(&self.0, &claim, &code).ok()?;
        let claim = String::from_utf8(claim).ok()?;
        let mut parts = claim.splitn(4, '.');
        let event = EventId(parts.next()?.parse().ok()?);
        let created_at = Timestamp::from_microsecond(parts.next()?.parse().ok()?).ok()?;
        let expires = parts.next()?.parse().ok()?;
        Some((Callee { event, created_at, handler: parts.next()?.to_owned() }, expires))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> Event {
        Event {
            id: EventId(i64::MAX),
            topic: "order.placed".to_owned(),
            key: None,
            payload: "{}".to_owned(),
            headers: "{}".to_owned(),
            created_at: "2026-03-01T12:30:00.123456Z".parse().unwrap(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_token_names_its_delivery_until_it_expires() {
        let key = CallbackKey::new(b"one");
        let handler = "h".repeat(63);
        let token = key.token(&event(), &handler, at(1000));
        assert!(token.len() <= TOKEN_BYTES_MAX, "{}", token.len());
        let callee = Callee { event: event().id, created_at: event().created_at, handler };
        let end = 1000 + VALID.as_secs().cast_signed();
        assert_eq!(key.read(&token, at(end - 1)), Ok(callee));
        assert_eq!(key.read(&token, at(end)), Err(TokenError::Expired));
        assert_eq!(CallbackKey::new(b"another").read(&token, at(1000)), Err(TokenError::Forged));
    }

    proptest! {
        #[test]
        fn no_changed_token_is_read(at_byte in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let key = CallbackKey::new(b"one");
            let token = key.token(&event(), "pay", at(0));
            let mut changed = token.clone().into_bytes();
            let place = at_byte.index(changed.len());
            changed[place] = byte;
            if let Ok(changed) = String::from_utf8(changed) && changed != token {
                prop_assert_eq!(key.read(&changed, at(0)), Err(TokenError::Forged));
            }
        }

        #[test]
        fn any_other_text_is_refused(text in "\\PC{0,300}") {
            prop_assert_eq!(CallbackKey::new(b"one").read(&text, at(0)), Err(TokenError::Forged));
        }
    }
}
