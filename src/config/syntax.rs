//! TOML that does not parse. The parser recovers, so one pass reports every mistake; what it had to guess is remembered
//! as damage, so that no error follows from another one.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::de::DeTable;

use super::error::Error;
use super::keys;
use super::text::{Lines, join, quote};

/// What the parser says of a key that is there already.
const DUPLICATE: &str = "duplicate key";
/// The longest path of an unclosed header that a message shows.
const PATH_BYTES_MAX: usize = 128;
/// What the parser says of a key without a value. It gives up the rest of the file then, see [`repair`].
const VALUELESS: &str = "key with no value";
/// What the parser says of `timeout = 10s`.
const UNQUOTED: &str = "string values must be quoted";

/// The places that do not say what they seem to say.
#[derive(Default)]
pub(super) struct Damage {
    lines: BTreeSet<usize>,
    /// By header line: the line from which on a section is not to be trusted.
    tails: BTreeMap<usize, usize>,
    /// The header lines of the sections that may have lost a key.
    lossy: BTreeSet<usize>,
}

impl Damage {
    /// Whether what seems to be written on this line may be the parser's guess.
    pub(super) fn has_line(&self, lines: &Lines<'_>, line: usize) -> bool {
        let is_in_tail = || self.tails.get(&lines.section(line).0).is_some_and(|&first| first <= line);
        self.lines.contains(&line) || is_in_tail()
    }

    /// Whether a key that seems to be missing in the section of this line may have been lost.
    pub(super) fn may_lack_keys(&self, lines: &Lines<'_>, line: usize) -> bool {
        self.lossy.contains(&lines.section(line).0)
    }

    fn add(&mut self, error: &toml::de::Error, span: &Range<usize>, lines: &Lines<'_>) {
        let (first, last) = (lines.number(span.start), lines.number(span.end));
        let (section, _) = lines.section(first);
        self.lines.extend(first..=last);
        if error.message().starts_with("unclosed") {
            let tail = self.tails.entry(section).or_insert(first);
            *tail = first.min(*tail);
        }
        let is_header = section == first;
        let keeps_keys = error.message() == DUPLICATE && !is_header || error.message().starts_with(UNQUOTED);
        if !keeps_keys {
            self.lossy.insert(section);
        }
    }
}

/// The first pass: its errors, and the same text for a second pass, with the same offsets, in which the lines are blank
/// at which the first pass gave up.
pub(super) fn repair<'t>(text: &'t str, lines: &Lines<'t>) -> (Vec<toml::de::Error>, Cow<'t, str>) {
    let (_, errors) = DeTable::parse_recoverable(text);
    let fatal: BTreeSet<usize> = errors
        .iter()
        .filter(|error| error.message().starts_with(VALUELESS))
        .map(|error| lines.number(error.span().map_or(0, |span| span.start)))
        .collect();
    if fatal.is_empty() {
        return (errors, Cow::Borrowed(text));
    }
    let blanked = text
        .split_inclusive('\n')
        .enumerate()
        .map(|(i, line)| if fatal.contains(&(i + 1)) { Cow::Owned(blank(line)) } else { Cow::Borrowed(line) });
    let repaired = blanked.collect();
    (errors, Cow::Owned(repaired))
}

fn blank(line: &str) -> String {
    line.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect()
}

/// What the parser found in both passes as errors of ours, and the damage that was done.
pub(super) fn explain(found: &[toml::de::Error], text: &str, lines: &Lines<'_>) -> (Vec<Error>, Damage) {
    let mut damage = Damage::default();
    let mut doubled_sections = BTreeSet::new();
    let mut explained = Vec::with_capacity(found.len());
    for error in found {
        let span = error.span().unwrap_or(text.len()..text.len());
        damage.add(error, &span, lines);
        let line = lines.number(span.start);
        let (section, _) = lines.section(line);
        let is_duplicate = error.message() == DUPLICATE;
        if is_duplicate && section == line {
            doubled_sections.insert(section);
        }
        let message =
            if is_duplicate { duplicate(span, text, lines) } else { not_toml(error.message(), span, text, lines) };
        explained.push((message, is_duplicate && section != line));
    }
    // The keys of a table that is there twice are there twice as well; that is not worth a line each.
    explained.retain(|(error, is_repeated_key)| {
        !is_repeated_key || !doubled_sections.contains(&lines.section(error.line).0)
    });
    (explained.into_iter().map(|(error, _)| error).collect(), damage)
}

fn not_toml(message: &str, span: Range<usize>, text: &str, lines: &Lines<'_>) -> Error {
    let what = message.strip_suffix(", expected literal string").unwrap_or(message);
    let key = path(span.start, text, lines);
    Error { line: lines.number(span.start), key, message: format!("this is not TOML: {what}") }
}

fn duplicate(span: Range<usize>, text: &str, lines: &Lines<'_>) -> Error {
    let line = lines.number(span.start);
    let (header_line, section) = lines.section(line);
    let path = path(span.start, text, lines);
    if header_line != line {
        let name = text.get(span).unwrap_or_default();
        return Error {
            line,
            key: join(&path, unquoted(name)),
            message: "this key is there already; write it once".to_owned(),
        };
    }
    let message = match section.strip_prefix("handler.") {
        Some(handler) if !handler.contains('.') => {
            format!("there is a handler {} already; the name of a handler is unique", quote(unquoted(handler)))
        }
        _ => "this table is there already; write it once".to_owned(),
    };
    Error { line, key: path, message }
}

/// As much of an unclosed header as is surely a path: what follows may be anything, a secret too.
fn path_at_start(unclosed: &str) -> &str {
    let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let path = unclosed.split(|c| !is_path(c)).next().unwrap_or_default();
    // The characters of a path are single bytes.
    path[..path.len().min(PATH_BYTES_MAX)].trim_end_matches('.')
}

fn unquoted(key: &str) -> &str {
    key.trim_matches(['"', '\''])
}

/// The path of the key whose value is at this offset, as far as the text around it shows. Unknown keys are left out:
/// what looks like a key may be the second line of a secret.
fn path(offset: usize, text: &str, lines: &Lines<'_>) -> String {
    let line = lines.number(offset);
    let (header_line, section) = lines.section(line);
    if header_line == line {
        return section.to_owned();
    }
    let before = text.get(lines.start(line)..offset).unwrap_or_default();
    if let Some(unclosed) = before.strip_prefix('[')
        && keys::ROOT.contains(&unclosed.split('.').next().unwrap_or_default())
    {
        return path_at_start(unclosed).to_owned();
    }
    match before.split_once('=') {
        Some((key, _)) if keys::is_known(key.trim()) => join(section, key.trim()),
        _ => section.to_owned(),
    }
}
