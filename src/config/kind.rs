//! What is called: `http`, `command` with `env`, or `sql`.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ipnet::IpNet;
use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};

use super::expand::is_variable_name;
use super::reader::{Field, Reader, Table};
use super::text::quote;
use super::url::{HttpUrl, in_full};
use super::{CommandConfig, DeliveryConfig, HttpConfig, Kind, Secret, SigningKey, SqlConfig, keys};

const ARGUMENTS_MAX: usize = 256;
const NETS_MAX: usize = 100;
/// A key is replaced by another one; three are a rotation that was begun before the last one had ended.
const SIGNING_KEYS_MAX: usize = 8;
const URL_RULE: &str = "write a string such as \"https://example.com/hooks\"";
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
    let secrets = reader.field(&table, "secret").map(|field| signing_keys(reader, &field)).unwrap_or_default();
    let headers = reader.field(&table, "headers").map(|field| headers(reader, &field)).unwrap_or_default();
    let allow = reader.field(&table, "allow");
    let nets = allow.as_ref().map(|field| nets(reader, field)).unwrap_or_default();
    let Some(field) = reader.field(&table, "url") else {
        reader.lacks(&table, "`url` is missing; write where to POST, such as \"https://example.com/hooks\"");
        return None;
    };
    let url = http_url(reader, &field)?;
    if let (Some(allow), false) = (&allow, url.takes_host()) {
        let rule = "it concerns hosts that an event names; remove it";
        reader.refuse(allow, format!("the host of the URL is written here and is never refused; {rule}"));
    }
    Some(HttpConfig { url, allow: nets, secrets, headers })
}

/// What an event says about the target of one delivery says nothing about the next: where the host comes from the event there is
/// no breaker, and where anything does there are no batches.
pub(super) fn fits(reader: &mut Reader<'_>, table: &Table<'_>, kind: &Kind, delivery: &mut DeliveryConfig) {
    let Kind::Http(http) = kind else { return };
    if let (None, Some(field)) = (http.url.fixed(), reader.field(table, "batch")) {
        let rule = "a batch is one call, to one URL; remove `batch`, or write the URL in full";
        reader.refuse(&field, format!("the URL takes something from each event: {rule}"));
    }
    if !http.url.takes_host() {
        return;
    }
    if let Some(field) = reader.field(table, "breaker").filter(|field| field.is("on")) {
        let rule = "one host that is away says nothing about the others; remove `breaker`, or write \"off\"";
        reader.refuse(&field, format!("each event names the host: {rule}"));
    }
    delivery.breaker = false;
}

fn http_url(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<HttpUrl> {
    let text = reader.expanded(field, URL_RULE)?;
    let url = checked(reader, field, HttpUrl::parse(&text))?;
    Some(url.written_as(field.value().as_str().unwrap_or_default()))
}

/// The URL is not shown in errors: it may hold a token, in its path or from a `${NAME}`.
pub(super) fn url(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Url> {
    let text = reader.expanded(field, URL_RULE)?;
    checked(reader, field, in_full(&text))
}

fn checked<T>(reader: &mut Reader<'_>, field: &Field<'_>, read: Result<T, Vec<String>>) -> Option<T> {
    match read {
        Ok(read) => Some(read),
        Err(wrongs) => {
            for wrong in wrongs {
                reader.refuse(field, wrong);
            }
            None
        }
    }
}

/// The nets that a URL from an event may lead to although they are not for everybody.
fn nets(reader: &mut Reader<'_>, field: &Field<'_>) -> Vec<IpNet> {
    const RULE: &str = "write an array of nets such as [\"10.0.0.0/8\", \"fd00::/8\"]";
    let texts = reader.strings(field, RULE).unwrap_or_default();
    if texts.len() > NETS_MAX {
        reader.refuse(field, format!("{} nets are too many; write at most {NETS_MAX}", texts.len()));
    }
    let mut nets = Vec::with_capacity(texts.len());
    for (item, text) in texts {
        match text.parse::<IpNet>() {
            Err(_) => reader.refuse(&item, format!("{} is not a net; {RULE}", quote(text))),
            Ok(net) if net != net.trunc() => {
                let meant = net.trunc();
                reader.refuse(&item, format!("{} is an address in the net {meant}; write \"{meant}\"", quote(text)));
            }
            Ok(IpNet::V6(net)) if net.prefix_len() >= 96 && net.network().to_ipv4_mapped().is_some() => {
                let rule = "these are checked as the IPv4 addresses in them; write the IPv4 net";
                reader.refuse(&item, format!("{} is a net of IPv4 addresses in IPv6; {rule}", quote(text)));
            }
            Ok(net) if nets.contains(&net) => {
                reader.refuse(&item, format!("{} is there already; write each net once", quote(text)));
            }
            Ok(net) => nets.push(net),
        }
    }
    nets
}

/// One key, or the new one and those that it replaces.
fn signing_keys(reader: &mut Reader<'_>, field: &Field<'_>) -> Vec<SigningKey> {
    let items = reader.one_or_many(field);
    if items.is_empty() || items.len() > SIGNING_KEYS_MAX {
        let rule = format!("write 1 to {SIGNING_KEYS_MAX}, the newest first");
        reader.refuse(field, format!("there are {} secrets; {rule}", items.len()));
    }
    let mut signing_keys = Vec::with_capacity(items.len());
    for item in items {
        match signing_key(reader, &item) {
            Some(key) if signing_keys.contains(&key) => {
                reader.refuse(&item, "the same secret is there already; write each one once");
            }
            key => signing_keys.extend(key),
        }
    }
    signing_keys
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

pub(super) fn headers(reader: &mut Reader<'_>, field: &Field<'_>) -> BTreeMap<String, Secret> {
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
