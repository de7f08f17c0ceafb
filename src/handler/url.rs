//! The URL that one event is posted to. What comes from the event cannot leave the place that the configuration gives it.

use std::borrow::Cow;
use std::fmt::Write as _;

use reqwest::Url;

use super::answer::{Fields, quote};
use crate::config::{HttpUrl, Part, Place, Taken, URL_BYTES_MAX, has_dot_segment};
use crate::event::Event;

/// What a label of a host may have.
const LABEL_BYTES_MAX: usize = 63;

/// The URL for this event, or why there is none: it will be the same the next time.
pub(super) fn fill(url: &HttpUrl, event: &Event) -> Result<Url, String> {
    if let Some(url) = url.fixed() {
        return Ok(url.clone());
    }
    // Without the query: it may hold a token.
    let shown = || url.shown();
    let mut text = String::new();
    for part in url.parts() {
        match part {
            Part::Text(part) => text.push_str(part),
            Part::Taken(taken, place) => {
                let value = value(taken, event)?;
                if value.len() > URL_BYTES_MAX {
                    return Err(format!("{taken} has {} bytes; a URL has at most {URL_BYTES_MAX}", value.len()));
                }
                text.push_str(&placed(taken, *place, &value)?);
            }
        }
    }
    if has_dot_segment(&text) {
        return Err(format!("{} becomes a path with . or .. between slashes, which would lead elsewhere", shown()));
    }
    let mut filled =
        Url::parse(&text).map_err(|error| format!("{} is not a URL with what this event has ({error})", shown()))?;
    filled.set_fragment(None);
    let bytes = filled.as_str().len();
    if bytes > URL_BYTES_MAX {
        return Err(format!(
            "{} has {bytes} bytes with what this event has; a URL has at most {URL_BYTES_MAX}",
            shown()
        ));
    }
    Ok(filled)
}

/// What the event has there.
fn value<'e>(taken: &Taken, event: &'e Event) -> Result<Cow<'e, str>, String> {
    let value = match taken {
        Taken::Topic => Some(Cow::Borrowed(&*event.topic)),
        Taken::Key => event.key.as_deref().map(Cow::Borrowed),
        Taken::Id => Some(Cow::Owned(event.id.to_string())),
        Taken::Header(name) => event.headers().remove(name).map(Cow::Owned),
        Taken::Payload(names) => of_payload(taken, names, &event.payload)?,
    };
    match value {
        Some(value) if !value.is_empty() => Ok(value),
        Some(_) => Err(format!("{taken} is empty in this event; the URL needs a text or a number")),
        None => Err(format!("{taken} is missing in this event; the URL needs a text or a number")),
    }
}

/// A text, or a number as PostgreSQL prints it: who reads a number may change it.
fn of_payload<'e>(taken: &Taken, names: &[String], payload: &'e str) -> Result<Option<Cow<'e, str>>, String> {
    let mut raw = payload;
    for name in names {
        let found = serde_json::from_str::<Fields<'e>>(raw).ok().and_then(|fields| fields.get(name).copied());
        match found {
            Some(found) => raw = found.get(),
            None => return Ok(None),
        }
    }
    let raw = raw.trim_ascii();
    match raw.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => Ok(Some(Cow::Borrowed(raw))),
        Some(b'"') => Ok(serde_json::from_str(raw).ok().map(Cow::Owned)),
        _ => Err(format!("{taken} is {} in this event; the URL needs a text or a number", quote(raw))),
    }
}

/// The value as it stands in the URL.
fn placed<'v>(taken: &Taken, place: Place, value: &'v str) -> Result<Cow<'v, str>, String> {
    match place {
        Place::Whole => whole(taken, value).map(|()| Cow::Borrowed(value)),
        Place::Path | Place::Query => Ok(Cow::Owned(percent_encoded(value, is_unreserved))),
        // Hosts know no percent-encoding that would keep a dot from being a dot.
        Place::Host if is_label(value) => Ok(Cow::Borrowed(value)),
        Place::Host => Err(format!(
            "{taken} is {:?} in this event; in a host it must be 1 to {LABEL_BYTES_MAX} letters, digits and -",
            quote(value)
        )),
    }
}

/// What must hold for a text that is the whole URL. What it says after its path is not repeated.
fn whole(taken: &Taken, value: &str) -> Result<(), String> {
    let wrong = |rule: &str| {
        let shown = value.split(['?', '#']).next().and_then(|text| text.rsplit('@').next()).unwrap_or_default();
        Err(format!("{taken} is {:?} in this event; {rule}", quote(shown)))
    };
    let begins = |scheme: &str| value.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    if !begins("http://") && !begins("https://") {
        return wrong("a URL begins with http:// or https://");
    }
    // The URL standard drops some of these in silence, and takes a backslash for a slash.
    if value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
        return wrong("a URL has no white space, control characters and backslashes");
    }
    match Url::parse(value) {
        Err(error) => wrong(&format!("it must be a URL ({error})")),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => wrong("it must have no user or password"),
        Ok(_) => Ok(()),
    }
}

fn is_label(value: &str) -> bool {
    value.len() <= LABEL_BYTES_MAX && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// What means nothing but itself anywhere in a URL (RFC 3986, section 2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The bytes that are to be kept as they are, the others as `%XX`.
pub(super) fn percent_encoded(text: &str, keep: impl Fn(u8) -> bool) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if keep(byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
