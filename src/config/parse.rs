//! The file as written becomes the file as meant.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use super::error::Errors;
use super::reader::{Field, Reader, Table};
use super::text::{Lines, quote};
use super::{Config, DaemonConfig, DeliveryConfig, HandlerConfig, Secret, Start, duration, keys, kind, syntax};
use crate::outcome::RetryPolicy;
use crate::topic::Pattern;

const HANDLERS_MAX: usize = 500;
const TOPICS_MAX: usize = 100;
const COUNT: RangeInclusive<u16> = 1..=1000;
const POLL_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);
const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const DEDUP_WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(366 * 24);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(24);
const RETRY_BASE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(24);
const RETRY_MAX: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(30 * 24);

impl Config {
    /// Reads a configuration, or says everything that is wrong with it. `file` is its name in the errors; `env` gives
    /// the value of a `${NAME}`.
    pub fn parse(text: &str, file: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Errors> {
        let lines = Lines::new(text);
        let (mut found, repaired) = syntax::repair(text, &lines);
        let (document, found_again) = DeTable::parse_recoverable(&repaired);
        found.extend(found_again);
        let (mut errors, damage) = syntax::explain(&found, text, &lines);

        let mut reader = Reader::new(lines, damage, env);
        let config = root(&mut reader, document.get_ref());
        errors.extend(reader.into_errors());
        if errors.is_empty() { Ok(config) } else { Err(Errors::new(file, errors)) }
    }
}

fn root(reader: &mut Reader<'_>, document: &DeTable<'_>) -> Config {
    let root = Reader::root(document);
    reader.know(&root, keys::ROOT);
    let mut config = Config::default();
    if let Some(field) = reader.field(&root, "daemon")
        && let Some(table) = reader.table(&field, "write a table: [daemon]")
    {
        config.daemon = daemon(reader, &table);
    }
    if let Some(field) = reader.field(&root, "database")
        && let Some(table) = reader.table(&field, "write a table: [database]")
    {
        config.daemon.database_url = database_url(reader, &table);
    }
    if let Some(field) = reader.field(&root, "handler")
        && let Some(table) = reader.table(&field, "write a table for each handler: [handler.NAME]")
    {
        config.handlers = handlers(reader, &field, &table);
    }
    config
}

fn database_url(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<Secret> {
    reader.know(table, keys::DATABASE);
    let field = reader.field(table, "url")?;
    let url = reader.expanded(&field, "write a string such as \"postgresql://localhost/app\"")?;
    if url.is_empty() || url.contains('\0') {
        return reader.refused(&field, "this is not a connection string; leave the key out, or name a database".into());
    }
    Some(Secret::new(url))
}

fn daemon(reader: &mut Reader<'_>, table: &Table<'_>) -> DaemonConfig {
    reader.know(table, keys::DAEMON);
    let mut daemon = DaemonConfig::default();
    if let Some(field) = reader.field(table, "poll_interval") {
        if field.is("off") {
            daemon.poll_interval = None;
        } else if let Some(interval) = reader.duration(&field, &POLL_INTERVAL, ", or \"off\"") {
            daemon.poll_interval = Some(interval);
        }
    }
    set_duration(reader, table, "drain_timeout", &DRAIN_TIMEOUT, &mut daemon.drain_timeout);
    set_duration(reader, table, "dedup_window", &DEDUP_WINDOW, &mut daemon.dedup_window);
    if let Some(size) = count(reader, table, "pool_size") {
        daemon.pool_size = size.into();
    }
    daemon
}

fn handlers(reader: &mut Reader<'_>, field: &Field<'_>, table: &Table<'_>) -> Vec<HandlerConfig> {
    let fields = reader.fields(table);
    if fields.len() > HANDLERS_MAX {
        let message = format!("{} handlers are too many; write at most {HANDLERS_MAX}", fields.len());
        reader.refuse(field, message);
    }
    let mut handlers: Vec<_> = fields.iter().filter_map(|field| handler(reader, field)).collect();
    handlers.sort_by(|a, b| a.name.cmp(&b.name));
    handlers
}

fn handler(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<HandlerConfig> {
    if !is_handler_name(field.name) {
        let rule = "write 1 to 63 letters, digits, `_` and `-`";
        reader.refuse(field, format!("{} is not the name of a handler; {rule}", quote(field.name)));
    }
    let table = reader.table(field, "write a table: [handler.NAME]")?;
    reader.know(&table, keys::HANDLER);
    let kind = kind::read(reader, &table);
    let mut delivery = DeliveryConfig::new(topics(reader, &table));
    if let Some(concurrency) = count(reader, &table, "concurrency") {
        delivery.concurrency = concurrency.into();
    }
    set_duration(reader, &table, "timeout", &TIMEOUT, &mut delivery.timeout);
    if let Some(field) = reader.field(&table, "retry") {
        delivery.retry = retry(reader, &field);
    }
    if let Some(field) = reader.field(&table, "start")
        && let Some(start) = start(reader, &field)
    {
        delivery.start = start;
    }
    Some(HandlerConfig { name: Arc::from(field.name), kind: kind?, delivery })
}

fn is_handler_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

fn topics(reader: &mut Reader<'_>, table: &Table<'_>) -> Vec<Pattern> {
    const RULE: &str = "write an array of topic patterns such as [\"user.registered\", \"payment.*\"]";
    let Some(field) = reader.field(table, "topics") else {
        reader.lacks(table, format!("`topics` is missing; {RULE}"));
        return Vec::new();
    };
    let Some(texts) = reader.strings(&field, RULE) else { return Vec::new() };
    if texts.is_empty() {
        reader.refuse(&field, format!("the array is empty; {RULE}, or [\"#\"] for every topic"));
    }
    if texts.len() > TOPICS_MAX {
        reader.refuse(&field, format!("{} topics are too many; write at most {TOPICS_MAX}", texts.len()));
    }
    let mut patterns: Vec<Pattern> = Vec::with_capacity(texts.len());
    for (item, text) in texts {
        match text.parse::<Pattern>() {
            Ok(pattern) if patterns.contains(&pattern) => {
                reader.refuse(&item, format!("{} is there already; write each topic once", quote(text)));
            }
            Ok(pattern) => patterns.push(pattern),
            Err(error) => reader.refuse(&item, error.to_string()),
        }
    }
    patterns
}

fn retry(reader: &mut Reader<'_>, field: &Field<'_>) -> RetryPolicy {
    let mut retry = RetryPolicy::default();
    let rule = "write a table such as { max_attempts = 12, base = \"1s\", max = \"1h\" }";
    let Some(table) = reader.table(field, rule) else { return retry };
    reader.know(&table, keys::RETRY);
    if let Some(attempts) = count(reader, &table, "max_attempts") {
        retry.max_attempts = attempts.into();
    }
    let base_is_read = set_duration(reader, &table, "base", &RETRY_BASE, &mut retry.base);
    let max_is_read = set_duration(reader, &table, "max", &RETRY_MAX, &mut retry.max);
    if base_is_read && max_is_read && retry.base > retry.max {
        let show = |name, value| {
            let note = if table.has(name) { "" } else { " (the default)" };
            format!("`{name}` \"{}\"{note}", duration::format(value))
        };
        let (base, max) = (show("base", retry.base), show("max", retry.max));
        reader.refuse(field, format!("{base} is longer than {max}; write `base` at most as long as `max`"));
    }
    retry
}

fn start(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Start> {
    const RULE: &str = "write \"now\" or \"beginning\"";
    match reader.string(field, RULE)? {
        "now" => Some(Start::Now),
        "beginning" => Some(Start::Beginning),
        other => reader.refused(field, format!("{} is not a place to start; {RULE}", quote(other))),
    }
}

fn count(reader: &mut Reader<'_>, table: &Table<'_>, name: &str) -> Option<u16> {
    let field = reader.field(table, name)?;
    reader.integer(&field, COUNT)
}

/// Replaces the default in `target` if the key is there; false if what is there cannot be used.
fn set_duration(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    name: &str,
    range: &RangeInclusive<Duration>,
    target: &mut Duration,
) -> bool {
    let Some(field) = reader.field(table, name) else { return true };
    let Some(duration) = reader.duration(&field, range, "") else { return false };
    *target = duration;
    true
}
