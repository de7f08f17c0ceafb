//! The file as written becomes the file as meant.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use super::error::Errors;
use super::reader::{Field, Reader, Table};
use super::text::{Lines, quote};
use super::{Config, DEFAULT_LISTEN, DaemonConfig, HandlerConfig, Secret, delivery, keys, kind, schedule, syntax};

/// Handlers, and schedules.
const TABLES_MAX: usize = 500;
const POLL_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);
const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const DEDUP_WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(366 * 24);
const ONCE_WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(3660 * 24);
const RETENTION: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(3660 * 24);

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
    config.daemon.listen = Some(DEFAULT_LISTEN);
    if let Some(field) = reader.field(&root, "daemon")
        && let Some(table) = reader.table(&field, "write a table: [daemon]")
    {
        daemon(reader, &table, &mut config.daemon);
    }
    if let Some(field) = reader.field(&root, "database")
        && let Some(table) = reader.table(&field, "write a table: [database]")
    {
        config.daemon.database_url = database_url(reader, &table);
    }
    if let Some(field) = reader.field(&root, "handler")
        && let Some(table) = reader.table(&field, "write a table for each handler: [handler.NAME]")
    {
        config.handlers = named(reader, &field, &table, "handler", handler);
        config.handlers.sort_by(|a, b| a.name.cmp(&b.name));
        let nowhere = config.daemon.listen.is_none() && config.daemon.callback_url.is_none();
        if let Some(handler) = config.handlers.iter().find(|handler| nowhere && handler.delivery.callback) {
            let rule = "write `callback_url`, or let `listen` be an address";
            let message = format!("handler {} takes callbacks, and none can reach this daemon; {rule}", handler.name);
            reader.refuse(&field, message);
        }
    }
    if let Some(field) = reader.field(&root, "schedule")
        && let Some(table) = reader.table(&field, "write a table for each schedule: [schedule.NAME]")
    {
        config.schedules = named(reader, &field, &table, "schedule", schedule::read);
        config.schedules.sort_by(|a, b| a.name.cmp(&b.name));
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

fn daemon(reader: &mut Reader<'_>, table: &Table<'_>, daemon: &mut DaemonConfig) {
    reader.know(table, keys::DAEMON);
    reader.set_duration_or_off(table, "poll_interval", &POLL_INTERVAL, &mut daemon.poll_interval);
    reader.set_duration(table, "drain_timeout", &DRAIN_TIMEOUT, &mut daemon.drain_timeout);
    reader.set_duration(table, "dedup_window", &DEDUP_WINDOW, &mut daemon.dedup_window);
    reader.set_duration(table, "once_window", &ONCE_WINDOW, &mut daemon.once_window);
    reader.set_duration_or_off(table, "retention", &RETENTION, &mut daemon.retention);
    if let Some(size) = reader.count(table, "pool_size") {
        daemon.pool_size = size.into();
    }
    if let Some(field) = reader.field(table, "listen") {
        daemon.listen = if field.is("off") { None } else { address(reader, &field) };
    }
    daemon.callback_url = reader.field(table, "callback_url").and_then(|field| kind::url(reader, &field));
}

/// No names: one that means another machine tomorrow must not move the port.
fn address(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<SocketAddr> {
    let rule = "write an address with a port such as \"127.0.0.1:7474\", or \"off\"";
    let text = reader.string(field, rule)?;
    let address = text.parse().ok();
    address.or_else(|| reader.refused(field, format!("{} is not an address with a port; {rule}", quote(text))))
}

/// The tables in a table, each of which has a name that the database stores.
fn named<T>(
    reader: &mut Reader<'_>,
    field: &Field<'_>,
    table: &Table<'_>,
    what: &str,
    read: impl Fn(&mut Reader<'_>, &Field<'_>) -> Option<T>,
) -> Vec<T> {
    let fields = reader.fields(table);
    if fields.len() > TABLES_MAX {
        let message = format!("{} {what}s are too many; write at most {TABLES_MAX}", fields.len());
        reader.refuse(field, message);
    }
    let mut all = Vec::with_capacity(fields.len());
    for field in &fields {
        if !is_name(field.name) {
            let rule = "write 1 to 63 letters, digits, `_` and `-`";
            reader.refuse(field, format!("{} is not the name of a {what}; {rule}", quote(field.name)));
        }
        all.extend(read(reader, field));
    }
    all
}

fn handler(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<HandlerConfig> {
    let table = reader.table(field, "write a table: [handler.NAME]")?;
    reader.know(&table, keys::HANDLER);
    let kind = kind::read(reader, &table);
    let delivery = delivery::read(reader, &table);
    Some(HandlerConfig { name: Arc::from(field.name), kind: kind?, delivery })
}

fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}
