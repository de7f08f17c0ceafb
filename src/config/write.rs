//! The effective configuration: what the daemon would do, every default filled in and every secret hidden.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::expand::escape;
use super::text::is_bare;
use super::{
    BatchConfig, CompensationConfig, Config, DeliveryConfig, FlowConfig, HandlerConfig, Kind, MaxBacklog, Record,
    ScheduleConfig, Start, StepConfig, alert, duration, traces,
};
use crate::outcome::{Backoff, PollPolicy, RetryPolicy};

const HIDDEN: &str = "\"***\"";

impl Config {
    /// The configuration as TOML, in the order of `systemd/outboxd.toml`. Secrets, headers and the values of `env` are
    /// `"***"`; a handler in Rust has no line that says what it calls.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write_config(&mut text, self);
        text
    }
}

fn write_config(out: &mut String, config: &Config) -> fmt::Result {
    let daemon = &config.daemon;
    if daemon.database_url.is_some() {
        write!(out, "[database]\nurl = {HIDDEN}\n\n")?;
    }
    let or_off = |duration: Option<Duration>| duration.map_or_else(|| "off".to_owned(), duration::format);
    writeln!(out, "[daemon]")?;
    writeln!(out, "poll_interval = \"{}\"", or_off(daemon.poll_interval))?;
    writeln!(out, "drain_timeout = \"{}\"", duration::format(daemon.drain_timeout))?;
    writeln!(out, "dedup_window = \"{}\"", duration::format(daemon.dedup_window))?;
    writeln!(out, "once_window = \"{}\"", duration::format(daemon.once_window))?;
    writeln!(out, "retention = \"{}\"", or_off(daemon.retention))?;
    writeln!(out, "pool_size = {}", daemon.pool_size)?;
    let listen = daemon.listen.map_or_else(|| "off".to_owned(), |address| address.to_string());
    writeln!(out, "listen = \"{listen}\"")?;
    if let Some(url) = &daemon.callback_url {
        writeln!(out, "callback_url = {}", string(&escape(url.as_str())))?;
    }
    if let Some(config) = &config.traces {
        let headers = (!config.headers.is_empty()).then(|| hidden(config.headers.keys()));
        traces::write(out, config, &string(&escape(config.endpoint.as_str())), headers.as_deref())?;
    }
    for handler in &config.handlers {
        write_handler(out, handler)?;
    }
    for flow in &config.flows {
        write_flow(out, flow)?;
    }
    for schedule in &config.schedules {
        write_schedule(out, schedule)?;
    }
    for alert in &config.alerts {
        let handler = alert.handler.as_ref().map(|handler| string(handler));
        alert::write(out, alert, &key(&alert.name), handler.as_deref())?;
    }
    Ok(())
}

fn write_handler(out: &mut String, handler: &HandlerConfig) -> fmt::Result {
    write!(out, "\n[handler.{}]\n", key(&handler.name))?;
    writeln!(out, "topics = [{}]", topics(&handler.delivery))?;
    write_called(out, &handler.kind, &handler.delivery, true)?;
    writeln!(out, "start = \"{}\"", start(&handler.delivery))
}

fn write_flow(out: &mut String, flow: &FlowConfig) -> fmt::Result {
    let FlowConfig { name, delivery, on_dead_step, graph, steps } = flow;
    let flow = key(name);
    write!(out, "\n[flow.{flow}]\n")?;
    writeln!(out, "on = [{}]", topics(delivery))?;
    write_order(out, delivery)?;
    writeln!(out, "on_dead_step = \"{}\"", on_dead_step.as_str())?;
    write_told(out, delivery)?;
    writeln!(out, "start = \"{}\"", start(delivery))?;
    for StepConfig { name, kind, delivery, retired, compensate } in steps {
        let step = key(name);
        let place = graph.steps().iter().find(|step| step.name == *name);
        write!(out, "\n[flow.{flow}.step.{step}]\n")?;
        if let Some(after) = place.map(|step| &step.after).filter(|after| !after.is_empty()) {
            let after: Vec<String> = after.iter().map(|name| string(name)).collect();
            writeln!(out, "after = [{}]", after.join(", "))?;
        }
        if *retired {
            writeln!(out, "retired = true")?;
        }
        write_called(out, kind, delivery, false)?;
        if let Some(CompensationConfig { kind, delivery }) = compensate {
            write!(out, "\n[flow.{flow}.step.{step}.compensate]\n")?;
            if let Some(when) = place.and_then(|step| step.compensate) {
                writeln!(out, "when = \"{}\"", when.as_str())?;
            }
            write_called(out, kind, delivery, false)?;
        }
    }
    Ok(())
}

fn topics(delivery: &DeliveryConfig) -> String {
    delivery.topics.iter().map(|topic| string(topic.as_str())).collect::<Vec<_>>().join(", ")
}

fn start(delivery: &DeliveryConfig) -> &'static str {
    match delivery.start {
        Start::Now => "now",
        Start::Beginning => "beginning",
    }
}

/// What is called, and how. `of_its_own`: it is no step of a flow, and may keep the order of keys.
fn write_called(out: &mut String, kind: &Kind, delivery: &DeliveryConfig, of_its_own: bool) -> fmt::Result {
    let DeliveryConfig { concurrency, timeout, max_timeout, retry, poll, callback, record, breaker, .. } = delivery;
    write_kind(out, kind)?;
    writeln!(out, "concurrency = {concurrency}")?;
    if let Some(most) = delivery.concurrency_per_key {
        writeln!(out, "concurrency_per_key = {most}")?;
    }
    if let Some(rate) = delivery.rate {
        writeln!(out, "rate = \"{rate}\"")?;
    }
    writeln!(out, "timeout = \"{}\"", duration::format(*timeout))?;
    writeln!(out, "max_timeout = \"{}\"", duration::format(max_timeout.unwrap_or(*timeout)))?;
    write_retry(out, retry)?;
    if let Some(PollPolicy { base, max, timeout }) = poll {
        let [base, max, timeout] = [base, max, timeout].map(|duration| duration::format(*duration));
        writeln!(out, "poll = {{ base = \"{base}\", max = \"{max}\", timeout = \"{timeout}\" }}")?;
    }
    writeln!(out, "callback = {callback}")?;
    if of_its_own {
        write_order(out, delivery)?;
    }
    let record = match record {
        Record::Late => "late",
        Record::Start => "start",
    };
    writeln!(out, "record = \"{record}\"")?;
    writeln!(out, "breaker = \"{}\"", if *breaker { "on" } else { "off" })?;
    write_told(out, delivery)
}

fn write_order(out: &mut String, delivery: &DeliveryConfig) -> fmt::Result {
    writeln!(out, "ordered = {}", delivery.ordered.is_some())?;
    if let Some(on_dead_key) = delivery.ordered {
        writeln!(out, "on_dead_key = \"{}\"", on_dead_key.as_str())?;
    }
    if delivery.coalesce {
        writeln!(out, "coalesce = \"key\"")?;
    }
    if let Some(BatchConfig { max, wait }) = delivery.batch {
        writeln!(out, "batch = {{ max = {max}, wait = \"{}\" }}", duration::format(wait))?;
    }
    if let Some(MaxBacklog { events, refuses }) = delivery.max_backlog {
        let then = if refuses { "refuse" } else { "warn" };
        writeln!(out, "max_backlog = {{ events = {events}, then = \"{then}\" }}")?;
    }
    Ok(())
}

fn write_told(out: &mut String, delivery: &DeliveryConfig) -> fmt::Result {
    if let Some(topic) = &delivery.on_done {
        writeln!(out, "on_done = {}", string(topic))?;
    }
    if let Some(topic) = &delivery.on_dead {
        writeln!(out, "on_dead = {}", string(topic))?;
    }
    Ok(())
}

fn write_schedule(out: &mut String, schedule: &ScheduleConfig) -> fmt::Result {
    let ScheduleConfig { name, timetable, topic, payload, key: of_key, catch_up } = schedule;
    write!(out, "\n[schedule.{}]\n", key(name))?;
    writeln!(out, "cron = {}", string(timetable.expression()))?;
    writeln!(out, "timezone = {}", string(timetable.zone_name()))?;
    writeln!(out, "topic = {}", string(topic))?;
    // It was TOML, so it can be TOML again.
    if let Ok(payload) = serde_json::from_str::<toml::Value>(payload) {
        writeln!(out, "payload = {payload}")?;
    }
    if let Some(of_key) = of_key {
        writeln!(out, "key = {}", string(of_key))?;
    }
    writeln!(out, "catch_up = {catch_up}")
}

/// Without `base` where it means nothing, and without what is not limited.
fn write_retry(out: &mut String, retry: &RetryPolicy) -> fmt::Result {
    let RetryPolicy { max_attempts, backoff, base, max, concurrency, rate } = retry;
    let duration = |duration: &Duration| format!("\"{}\"", duration::format(*duration));
    let backoff = match backoff {
        Backoff::Exponential => format!("\"exponential\", base = {}", duration(base)),
        Backoff::Linear => format!("\"linear\", base = {}", duration(base)),
        Backoff::Fixed => format!("\"fixed\", base = {}", duration(base)),
        Backoff::List(pauses) => format!("[{}]", pauses.iter().map(duration).collect::<Vec<_>>().join(", ")),
    };
    write!(out, "retry = {{ max_attempts = {max_attempts}, backoff = {backoff}, max = {}", duration(max))?;
    if let Some(concurrency) = concurrency {
        write!(out, ", concurrency = {concurrency}")?;
    }
    if let Some(rate) = rate {
        write!(out, ", rate = {rate}")?;
    }
    writeln!(out, " }}")
}

fn write_kind(out: &mut String, kind: &Kind) -> fmt::Result {
    match kind {
        Kind::Http(http) => {
            let url = http.url.written().map_or_else(|| escape(&http.url.to_string()), ToOwned::to_owned);
            write!(out, "http = {{ url = {}", string(&url))?;
            if !http.allow.is_empty() {
                let allow: Vec<String> = http.allow.iter().map(|net| string(&net.to_string())).collect();
                write!(out, ", allow = [{}]", allow.join(", "))?;
            }
            match http.secrets.len() {
                0 => {}
                1 => write!(out, ", secret = {HIDDEN}")?,
                several => write!(out, ", secret = [{}]", vec![HIDDEN; several].join(", "))?,
            }
            if !http.headers.is_empty() {
                write!(out, ", headers = {}", hidden(http.headers.keys()))?;
            }
            writeln!(out, " }}")
        }
        Kind::Command(command) => {
            let argv: Vec<String> = command.argv.iter().map(|argument| string(argument)).collect();
            writeln!(out, "command = [{}]", argv.join(", "))?;
            if !command.env.is_empty() {
                writeln!(out, "env = {}", hidden(command.env.keys()))?;
            }
            Ok(())
        }
        Kind::Sql(sql) => writeln!(out, "sql = {}", string(&format!("{}.{}", sql.schema, sql.function))),
        Kind::Native => Ok(()),
    }
}

/// An inline table of these names that hides their values.
fn hidden<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let entries: Vec<String> = names.map(|name| format!("{} = {HIDDEN}", key(name))).collect();
    format!("{{ {} }}", entries.join(", "))
}

fn key(name: &str) -> String {
    if is_bare(name) { name.to_owned() } else { string(name) }
}

fn string(text: &str) -> String {
    toml::Value::from(text).to_string()
}
