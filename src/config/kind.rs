//! What is called: `http`, `command` with `env`, or `sql`.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};

use super::expand::is_variable_name;
use super::reader::{Field, Reader, Table};
use super::text::quote;
use super::{CommandConfig, HttpConfig, Kind, Secret, SigningKey, SqlConfig, keys};

const ARGUMENTS_MAX: usize = 256;
const SIGNING_KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The headers that every request has from outboxd.
const OWN_HEADERS: &[&str] = &[
    "connection",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "user-agent",
];
const OWN_HEADER_PREFIXES: &[&str] = &["ce-", "outbox-", "webhook-"];

/// Reads every kind that is written, so that all their errors are told, and gives back the only one.
pub(super) fn read(reader: &mut Reader<'_>, handler: &Table<'_>) -> Option<Kind> {
    let http = reader.field(handler, "http");
    let command = reader.field(handler, "command");
    let sql = reader.field(handler, "sql");
    let env = reader.field(handler, "env");
    let written: Vec<&str> = [&http, &command, &sql].into_iter().flatten().map(|field| field.name).collect();
    match written[..] {
        [_] => {}
        [] => reader.lacks(handler, "nothing to call; write one of `http`, `command` and `sql`"),
        _ => {
            let written = written.join("` and `");
            reader.lacks(handler, format!("`{written}` exclude each other; write one of `http`, `command` and `sql`"));
        }
    }
    if let (Some(env), None) = (&env, &command) {
        reader.refuse(env, "only a command has an environment; write `env` beside `command`, or remove it");
    }
    let env = env.map(|field| environment(reader, &field)).unwrap_or_default();
    let http = http.and_then(|field| http_config(reader, &field));
    let argv = command.and_then(|field| arguments(reader, &field));
    let sql = sql.and_then(|field| function(reader, &field));
    http.map(Kind::Http).or(argv.map(|argv| Kind::Command(CommandConfig { argv, env }))).or(sql.map(Kind::Sql))
}

fn http_config(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<HttpConfig> {
    let table = reader.table(field, "write a table such as { url = \"https://example.com/hooks\" }")?;
    reader.know(&table, keys::HTTP);
    let secret = reader.field(&table, "secret").and_then(|field| signing_key(reader, &field));
    let headers = reader.field(&table, "headers").map(|field| headers(reader, &field)).unwrap_or_default();
    let Some(field) = reader.field(&table, "url") else {
        reader.lacks(&table, "`url` is missing; write where to POST, such as \"https://example.com/hooks\"");
        return None;
    };
    let url = url(reader, &field)?;
    Some(HttpConfig { url, secret, headers })
}

/// The URL is not shown in errors: it may hold a token, in its path or from a `${NAME}`.
pub(super) fn url(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Url> {
    const RULE: &str = "write http://HOST/PATH or https://HOST/PATH";
    let text = reader.expanded(field, "write a string such as \"https://example.com/hooks\"")?;
    // The URL standard drops white space in silence, which would hide a mistake such as a line break in a variable.
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return reader.refused(field, format!("the URL holds white space or control characters; {RULE}"));
    }
    let url = match Url::parse(&text) {
        Ok(url) => url,
        Err(error) => return reader.refused(field, format!("this is not a URL ({error}); {RULE}")),
    };
    let has_credentials = !url.username().is_empty() || url.password().is_some();
    let wrongs = [
        (!matches!(url.scheme(), "http" | "https"), "the scheme is neither http nor https"),
        (url.host_str().is_none_or(str::is_empty), "the URL has no host"),
        (has_credentials, "the URL holds credentials, which logs would show (send them in `headers`)"),
        (url.fragment().is_some(), "the URL has a fragment (#...), which is never sent"),
    ];
    for (_, wrong) in wrongs.iter().filter(|(applies, _)| *applies) {
        reader.refuse(field, format!("{wrong}; {RULE}"));
    }
    (!wrongs.iter().any(|&(applies, _)| applies)).then_some(url)
}

fn signing_key(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<SigningKey> {
    // Some issuers of Standard Webhooks secrets leave the padding out.
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    const RULE: &str = "write whsec_ and the base64 of 24 to 64 random bytes, best as \"${NAME}\"";
    let text = reader.expanded(field, RULE)?;
    let Some(encoded) = text.strip_prefix("whsec_") else {
        return reader.refused(field, format!("the secret does not begin with whsec_; {RULE}"));
    };
    match BASE64.decode(encoded) {
        Ok(key) if SIGNING_KEY_BYTES.contains(&key.len()) => Some(SigningKey::new(key)),
        Ok(key) => reader.refused(field, format!("the secret has {} bytes; {RULE}", key.len())),
        // The decoder's own error names the offending byte, which is a part of the secret.
        Err(_) => reader.refused(field, format!("what follows whsec_ is not base64; {RULE}")),
    }
}

fn headers(reader: &mut Reader<'_>, field: &Field<'_>) -> BTreeMap<String, Secret> {
    let Some(table) = reader.table(field, "write a table such as { Authorization = \"Bearer ${TOKEN}\" }") else {
        return BTreeMap::new();
    };
    let mut seen = BTreeSet::new();
    let mut headers = BTreeMap::new();
    for field in reader.fields(&table) {
        let name = field.name.to_ascii_lowercase();
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            let rule = "write letters, digits and `-`";
            reader.refuse(&field, format!("{} is not the name of a header; {rule}", quote(field.name)));
        } else if is_own_header(&name) {
            reader.refuse(&field, format!("{} is set by outboxd; remove it", quote(field.name)));
        } else if !seen.insert(name) {
            let rule = "names differ in more than case";
            reader.refuse(&field, format!("{} is there already; {rule}", quote(field.name)));
        }
        if let Some(value) = header_value(reader, &field) {
            headers.insert(field.name.to_owned(), value);
        }
    }
    headers
}

fn is_own_header(name: &str) -> bool {
    OWN_HEADERS.contains(&name) || OWN_HEADER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn header_value(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Secret> {
    const RULE: &str = "write a string of visible ASCII characters and spaces";
    let value = reader.expanded(field, RULE)?;
    if HeaderValue::from_str(&value).is_err() {
        return reader.refused(field, format!("this is not the value of a header; {RULE}"));
    }
    Some(Secret::new(value))
}

fn arguments(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Vec<String>> {
    const RULE: &str = "write a program and its arguments, such as [\"/usr/local/bin/thumbnail\", \"--stdin\"]";
    let arguments = reader.strings(field, RULE)?;
    if arguments.len() > ARGUMENTS_MAX {
        let message = format!("{} strings are too many; write at most {ARGUMENTS_MAX}", arguments.len());
        reader.refuse(field, message);
    }
    if arguments.first().is_none_or(|(_, program)| program.is_empty()) {
        reader.refuse(field, format!("the command is empty; {RULE}"));
    }
    let mut argv = Vec::with_capacity(arguments.len());
    for (item, argument) in arguments {
        if argument.contains('\0') {
            reader.refuse(&item, format!("{} holds a NUL, which no argument can; remove it", quote(argument)));
        }
        argv.push(argument.to_owned());
    }
    Some(argv)
}

fn environment(reader: &mut Reader<'_>, field: &Field<'_>) -> BTreeMap<String, Secret> {
    let Some(table) = reader.table(field, "write a table such as { LANG = \"C.UTF-8\" }") else {
        return BTreeMap::new();
    };
    let mut env = BTreeMap::new();
    for field in reader.fields(&table) {
        if !is_variable_name(field.name) {
            let rule = "write letters, digits and `_`, no digit first";
            reader.refuse(&field, format!("{} is not the name of a variable; {rule}", quote(field.name)));
        } else if field.name.starts_with("OUTBOX_") {
            reader.refuse(&field, format!("{} is set by outboxd; choose another name", quote(field.name)));
        }
        match reader.expanded(&field, "write a string") {
            Some(value) if value.contains('\0') => {
                reader.refuse(&field, "the value holds a NUL, which no variable can; remove it");
            }
            Some(value) => {
                env.insert(field.name.to_owned(), Secret::new(value));
            }
            None => {}
        }
    }
    env
}

fn function(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<SqlConfig> {
    const RULE: &str = "write \"schema.function\", each of letters, digits, `_` and `$`, at most 63 and no digit first";
    let text = reader.string(field, RULE)?;
    match text.split_once('.') {
        Some((schema, function)) if is_sql_name(schema) && is_sql_name(function) => {
            Some(SqlConfig { schema: schema.to_owned(), function: function.to_owned() })
        }
        _ => reader.refused(field, format!("{} is not the name of a function; {RULE}", quote(text))),
    }
}

/// `[A-Za-z_][A-Za-z0-9_$]{0,62}`
fn is_sql_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with(|c: char| c.is_ascii_digit() || c == '$')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$'))
}
