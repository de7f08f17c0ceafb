//! The file as written becomes the file as meant.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use super::error::Errors;
use super::names::named;
use super::reader::{Field, Reader, Table};
use super::text::{Lines, quote};
use super::{
    Config, DEFAULT_LISTEN, DaemonConfig, HandlerConfig, Secret, alert, delivery, flow, keys, kind, schedule, syntax,
    traces,
};

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
    config.traces = reader.field(&root, "traces").and_then(|field| traces::read(reader, &field));
    if let Some(field) = reader.field(&root, "handler")
        && let Some(table) = reader.table(&field, "write a table for each handler: [handler.NAME]")
    {
        config.handlers = named(reader, &field, &table, "handler", handler);
        config.handlers.sort_by(|a, b| a.name.cmp(&b.name));
        let callback = config.handlers.iter().find(|handler| handler.delivery.callback);
        callbacks_can_come(reader, &field, &config.daemon, callback.map(|handler| format!("handler {}", handler.name)));
    }
    if let Some(field) = reader.field(&root, "flow")
        && let Some(table) = reader.table(&field, "write a table for each flow: [flow.NAME]")
    {
        config.flows = named(reader, &field, &table, "flow", flow::read);
        config.flows.sort_by(|a, b| a.name.cmp(&b.name));
        for flow in reader.fields(&table) {
            if config.handlers.iter().any(|handler| *handler.name == *flow.name) {
                reader.refuse(
                    &flow,
                    format!("there is a handler {} already; give the flow another name", quote(flow.name)),
                );
            }
        }
        let callback = config.flows.iter().find_map(|flow| {
            let step = flow.steps.iter().find(|step| step.handlers().any(|(_, delivery)| delivery.callback))?;
            Some(format!("step {} of flow {}", step.name, flow.name))
        });
        callbacks_can_come(reader, &field, &config.daemon, callback);
    }
    if let Some(field) = reader.field(&root, "schedule")
        && let Some(table) = reader.table(&field, "write a table for each schedule: [schedule.NAME]")
    {
        config.schedules = named(reader, &field, &table, "schedule", schedule::read);
        config.schedules.sort_by(|a, b| a.name.cmp(&b.name));
    }
    if let Some(field) = reader.field(&root, "alert")
        && let Some(table) = reader.table(&field, "write a table for each alert: [alert.NAME]")
    {
        config.alerts = named(reader, &field, &table, "alert", alert::read);
        config.alerts.sort_by(|a, b| a.name.cmp(&b.name));
    }
    config
}

fn callbacks_can_come(reader: &mut Reader<'_>, field: &Field<'_>, daemon: &DaemonConfig, who: Option<String>) {
    let (Some(who), None) = (who, &daemon.callback_url) else { return };
    match daemon.listen {
        None => {
            let rule = "write `callback_url`, or let `listen` be an address";
            reader.refuse(field, format!("{who} takes callbacks, and none can reach this daemon; {rule}"));
        }
        // It is no address that somebody could post to.
        Some(address) if address.ip().is_unspecified() => {
            let rule = "write `callback_url`, the address of this machine that they reach";
            reader.refuse(field, format!("{who} takes callbacks, and `listen` is {address}; {rule}"));
        }
        Some(_) => {}
    }
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

fn handler(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<HandlerConfig> {
    let table = reader.table(field, "write a table: [handler.NAME]")?;
    reader.know(&table, keys::HANDLER);
    let kind = kind::read(reader, &table);
    let mut delivery = delivery::read(reader, &table);
    let kind = kind?;
    kind::fits(reader, &table, &kind, &mut delivery);
    Some(HandlerConfig { name: Arc::from(field.name), kind, delivery })
}
