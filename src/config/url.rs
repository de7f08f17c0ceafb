//! Where an HTTP handler posts to: a URL, of which parts may come from the event.
//!
//! What stands in braces is replaced, as in level 1 of RFC 6570: `{topic}`, `{key}`, `{id}`, `{payload.a.b}`, `{headers.name}`. It
//! may be a part of the host, of the path or of the query, or all there is. Never the scheme or the port: these are the operator's.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;

/// The longest URL that has something from an event.
pub(crate) const URL_BYTES_MAX: usize = 2_000;

const RULE: &str = "write http://HOST/PATH or https://HOST/PATH";
const PLACEHOLDERS: &str =
    "write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters";

/// The URL of an HTTP handler, as the configuration has it.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl {
    parts: Vec<Part>,
    /// The URL, with an `x` for everything that comes from the event; `None`: all of it does.
    sample: Option<Url>,
    /// The text with its `${NAME}`, if it has any: what they stand for may be a secret.
    written: Option<String>,
}

/// A piece of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    Taken(Taken, Place),
}

/// What is taken from an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    Topic,
    Key,
    Id,
    /// The keys from the outermost object on.
    Payload(Vec<String>),
    Header(String),
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is the whole URL.
    Whole,
    Host,
    Path,
    Query,
}

impl HttpUrl {
    /// Everything that is wrong with it, otherwise. No error repeats the text, which may hold a token.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<String>> {
        if !text.contains(['{', '}']) {
            return in_full(text).map(Self::from);
        }
        let pieces = pieces(text)?;
        if let [Part::Taken(..)] = pieces[..] {
            return Ok(Self { parts: pieces, sample: None, written: None });
        }
        template(text, pieces)
    }

    /// The same, as somebody wrote it: with `${NAME}` where secrets may be.
    pub(super) fn written_as(mut self, text: &str) -> Self {
        self.written = text.replace("$$", "").contains("${").then(|| text.to_owned());
        self
    }

    /// The URL, if nothing of it comes from an event.
    #[must_use]
    pub fn fixed(&self) -> Option<&Url> {
        self.sample.as_ref().filter(|_| !self.takes(|_| true))
    }

    /// Whether an event has a say in which host is called.
    #[must_use]
    pub fn takes_host(&self) -> bool {
        self.takes(|place| matches!(place, Place::Whole | Place::Host))
    }

    fn takes(&self, wanted: impl Fn(Place) -> bool) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Taken(_, place) if wanted(*place)))
    }

    /// The host that is called, with its port, if it is the same for every event.
    #[must_use]
    pub fn host(&self) -> Option<String> {
        let url = self.sample.as_ref().filter(|_| !self.takes_host())?;
        Some(format!("{}:{}", url.host_str()?, url.port_or_known_default().unwrap_or_default()))
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The text of the configuration if that has `${NAME}`.
    pub(super) fn written(&self) -> Option<&str> {
        self.written.as_deref()
    }

    /// As operators see it: without the query, which may hold a token, and without the values of `${NAME}`.
    #[must_use]
    pub fn shown(&self) -> String {
        let text = self.written.clone().unwrap_or_else(|| self.to_string());
        text.split('?').next().unwrap_or_default().to_owned()
    }

    /// How errors name the URL that was called.
    pub(crate) fn shown_as(&self, called: &Url) -> String {
        if self.written.is_some() {
            return self.shown();
        }
        let mut url = called.clone();
        url.set_query(None);
        url.into()
    }
}

impl From<Url> for HttpUrl {
    fn from(url: Url) -> Self {
        Self { parts: vec![Part::Text(url.as_str().to_owned())], sample: Some(url), written: None }
    }
}

impl FromStr for HttpUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|wrongs| wrongs.join("; "))
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

/// The whole text, with what every `${NAME}` stands for.
impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Taken(taken, _) => taken.fmt(f),
        })
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic => f.write_str("{topic}"),
            Self::Key => f.write_str("{key}"),
            Self::Id => f.write_str("{id}"),
            Self::Payload(names) => write!(f, "{{payload.{}}}", names.join(".")),
            Self::Header(name) => write!(f, "{{headers.{name}}}"),
        }
    }
}

impl Taken {
    fn parse(text: &str) -> Option<Self> {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        match text {
            "topic" => Some(Self::Topic),
            "key" => Some(Self::Key),
            "id" => Some(Self::Id),
            _ => match text.split_once('.')? {
                ("headers", name) if is_name(name) => Some(Self::Header(name.to_owned())),
                ("payload", path) if path.split('.').all(is_name) => {
                    Some(Self::Payload(path.split('.').map(ToOwned::to_owned).collect()))
                }
                _ => None,
            },
        }
    }
}

/// A URL that says everything itself.
pub(super) fn in_full(text: &str) -> Result<Url, Vec<String>> {
    // The URL standard drops white space in silence, which would hide a mistake such as a line break in a variable.
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(vec![format!("the URL holds white space or control characters; {RULE}")]);
    }
    let url = Url::parse(text).map_err(|error| vec![format!("this is not a URL ({error}); {RULE}")])?;
    let has_credentials = !url.username().is_empty() || url.password().is_some();
    let wrongs = [
        (!matches!(url.scheme(), "http" | "https"), "the scheme is neither http nor https"),
        (url.host_str().is_none_or(str::is_empty), "the URL has no host"),
        (has_credentials, "the URL holds credentials, which logs would show (send them in `headers`)"),
        (url.fragment().is_some(), "the URL has a fragment (#...), which is never sent"),
    ];
    let wrongs: Vec<String> =
        wrongs.iter().filter(|(applies, _)| *applies).map(|(_, wrong)| format!("{wrong}; {RULE}")).collect();
    if wrongs.is_empty() { Ok(url) } else { Err(wrongs) }
}

/// The texts and the placeholders of a URL, in turn. Where these stand is not known yet.
fn pieces(text: &str) -> Result<Vec<Part>, Vec<String>> {
    let (mut pieces, mut wrongs, mut rest) = (Vec::new(), Vec::new(), text);
    while let Some(at) = rest.find(['{', '}']) {
        let number = pieces.iter().filter(|piece| matches!(piece, Part::Taken(..))).count() + wrongs.len() + 1;
        let (before, braces) = rest.split_at(at);
        if !before.is_empty() {
            pieces.push(Part::Text(before.to_owned()));
        }
        let inside = braces.strip_prefix('{').and_then(|braces| braces.split_once('}'));
        let Some((name, after)) = inside else {
            wrongs.push(format!("a brace of the URL has no partner; {PLACEHOLDERS}"));
            break;
        };
        match Taken::parse(name) {
            Some(taken) => pieces.push(Part::Taken(taken, Place::Whole)),
            None => wrongs.push(format!("placeholder {number} is not known; {PLACEHOLDERS}")),
        }
        rest = after;
    }
    if !wrongs.is_empty() {
        return Err(wrongs);
    }
    if !rest.is_empty() {
        pieces.push(Part::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// A URL that has some text of its own.
fn template(text: &str, mut pieces: Vec<Part>) -> Result<HttpUrl, Vec<String>> {
    let mut wrongs = Vec::new();
    if text.len() > URL_BYTES_MAX {
        wrongs.push(format!("the URL has {} bytes; write at most {URL_BYTES_MAX}", text.len()));
    }
    if !["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) {
        let rule = "begin with http:// or https://, or let one placeholder be the whole URL";
        wrongs.push(format!("a URL with placeholders does not say its scheme; {rule}"));
        return Err(wrongs);
    }
    if text.contains('\\') {
        wrongs.push(format!("the URL holds a backslash, which some take for a slash; {RULE}"));
    }
    let mut sample = String::with_capacity(text.len());
    for at in 0..pieces.len() {
        let ends_host = match pieces.get(at + 1) {
            None => true,
            Some(Part::Text(next)) => next.starts_with(['/', '?', '#', ':']),
            Some(Part::Taken(..)) => false,
        };
        match &mut pieces[at] {
            Part::Text(text) => sample.push_str(text),
            Part::Taken(_, place) => {
                *place = place_after(&sample).unwrap_or_else(|| {
                    wrongs.push("a placeholder stands where the port is; write the port itself".to_owned());
                    Place::Path
                });
                if *place == Place::Host && ends_host {
                    let rule = "write the end of the host itself, or take the whole URL from the event";
                    wrongs.push(format!("the host ends with a placeholder; {rule}"));
                }
                sample.push('x');
            }
        }
    }
    if has_dot_segment(&sample) {
        wrongs.push(format!("the path of the URL has . or .. between slashes; {RULE}"));
    }
    if !wrongs.is_empty() {
        return Err(wrongs);
    }
    Ok(HttpUrl { parts: pieces, sample: Some(in_full(&sample)?), written: None })
}

/// Where something stands that follows this beginning of a URL; `None`: in the port, or in a password.
fn place_after(beginning: &str) -> Option<Place> {
    let rest = beginning.split_once("://").map_or("", |(_, rest)| rest);
    if rest.contains('?') {
        Some(Place::Query)
    } else if rest.contains('/') {
        Some(Place::Path)
    } else {
        (!rest.contains(':')).then_some(Place::Host)
    }
}

/// Whether a segment of the path is `.` or `..`, which would take others away.
pub(crate) fn has_dot_segment(url: &str) -> bool {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    path.split('/').skip(1).any(|segment| {
        let segment = segment.to_ascii_lowercase().replace("%2e", ".");
        segment == "." || segment == ".."
    })
}
