//! What a handler wants and how it is run: topics, limits, retries, order.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::reader::{Field, Reader, Table};
use super::text::quote;
use super::{BatchConfig, DeliveryConfig, MaxBacklog, OnDeadKey, RateLimit, Record, Start, duration, keys, rate};
use crate::outcome::{Backoff, PollPolicy, RetryPolicy, SNOOZE_MIN};
use crate::topic::Pattern;

const TOPICS_MAX: usize = 100;
const PAUSES_MAX: usize = 100;
const RATE: RangeInclusive<u32> = 1..=100_000;
const BATCH_EVENTS: RangeInclusive<u32> = 2..=1000;
const BACKLOG_EVENTS: RangeInclusive<u32> = 1..=1_000_000;
const BATCH_WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_mins(10);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(24);
const RETRY_BASE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(24);
const POLL_PAUSE: RangeInclusive<Duration> = SNOOZE_MIN..=Duration::from_hours(24);
const POLL_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(30 * 24);
const RETRY_MAX: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(30 * 24);

/// What a handler of its own wants.
pub(super) fn read(reader: &mut Reader<'_>, table: &Table<'_>) -> DeliveryConfig {
    let topics = topics(reader, table);
    read_for(reader, table, topics)
}

/// The same without topics, which a step of a flow has not.
pub(super) fn read_for(reader: &mut Reader<'_>, table: &Table<'_>, topics: Vec<Pattern>) -> DeliveryConfig {
    let mut delivery = DeliveryConfig::new(topics);
    let concurrency = reader.count(table, "concurrency");
    delivery.concurrency = concurrency.map_or(delivery.concurrency, usize::from);
    let slots_known = concurrency.is_some() || !table.has("concurrency");
    delivery.rate = reader.field(table, "rate").and_then(|field| rate(reader, &field));
    timeouts(reader, table, &mut delivery);
    if let Some(field) = reader.field(table, "retry") {
        delivery.retry = retry(reader, &field);
        if slots_known {
            retries_fit(reader, table, &field, &delivery);
        }
    }
    delivery.poll = reader.field(table, "poll").and_then(|field| poll(reader, &field));
    if let Some(field) = reader.field(table, "callback") {
        delivery.callback = reader.boolean(&field, "write true or false").unwrap_or_default();
    }
    delivery.ordered = ordered(reader, table);
    coalesce(reader, table, &mut delivery);
    delivery.concurrency_per_key = concurrency_per_key(reader, table, &delivery, slots_known);
    delivery.batch = reader.field(table, "batch").and_then(|field| batch(reader, &field));
    delivery.max_backlog = reader.field(table, "max_backlog").and_then(|field| max_backlog(reader, &field));
    let records = [("late", Record::Late), ("start", Record::Start)];
    reader.set_choice(table, "record", "a time to record", &records, &mut delivery.record);
    if delivery.callback {
        if let (Record::Late, Some(field)) = (delivery.record, reader.field(table, "record")) {
            let rule = "an answer may come before the attempt has ended; write \"start\", or remove it";
            reader.refuse(&field, format!("with `callback` every attempt has a row from its beginning: {rule}"));
        }
        delivery.record = Record::Start;
    }
    let switch = [("on", true), ("off", false)];
    reader.set_choice(table, "breaker", "a setting of the breaker", &switch, &mut delivery.breaker);
    told_and_started(reader, table, &mut delivery);
    delivery
}

/// Who is told, and where it begins.
pub(super) fn told_and_started(reader: &mut Reader<'_>, table: &Table<'_>, delivery: &mut DeliveryConfig) {
    delivery.on_done = reader.field(table, "on_done").and_then(|field| topic(reader, &field));
    delivery.on_dead = reader.field(table, "on_dead").and_then(|field| topic(reader, &field));
    let starts = [("now", Start::Now), ("beginning", Start::Beginning)];
    reader.set_choice(table, "start", "a place to start", &starts, &mut delivery.start);
}

fn topics(reader: &mut Reader<'_>, table: &Table<'_>) -> Vec<Pattern> {
    const RULE: &str = "write an array of topic patterns such as [\"user.registered\", \"payment.*\"]";
    let Some(field) = reader.field(table, "topics") else {
        reader.lacks(table, format!("`topics` is missing; {RULE}"));
        return Vec::new();
    };
    let Some(texts) = reader.strings(&field, RULE) else { return Vec::new() };
    patterns(reader, &field, texts, RULE)
}

/// What a flow begins with: one topic pattern, or an array of them.
pub(super) fn on(reader: &mut Reader<'_>, table: &Table<'_>) -> Vec<Pattern> {
    const RULE: &str = "write a topic pattern such as \"order.placed\", or an array of them";
    let Some(field) = reader.field(table, "on") else {
        reader.lacks(table, format!("`on` is missing; {RULE}"));
        return Vec::new();
    };
    let texts = if field.is_array() {
        reader.strings(&field, RULE)
    } else {
        reader.string(&field, RULE).map(|text| vec![(field.clone(), text)])
    };
    texts.map(|texts| patterns(reader, &field, texts, RULE)).unwrap_or_default()
}

fn patterns(reader: &mut Reader<'_>, field: &Field<'_>, texts: Vec<(Field<'_>, &str)>, rule: &str) -> Vec<Pattern> {
    if texts.is_empty() {
        reader.refuse(field, format!("the array is empty; {rule}, or [\"#\"] for every topic"));
    }
    if texts.len() > TOPICS_MAX {
        reader.refuse(field, format!("{} topics are too many; write at most {TOPICS_MAX}", texts.len()));
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

/// A topic that an event can have.
pub(super) fn topic(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<String> {
    const RULE: &str = "write one topic, without wildcards, such as \"payment.dead\"";
    let text = reader.string(field, RULE)?;
    match text.parse::<Pattern>() {
        Ok(pattern) if pattern.is_topic() => Some(text.to_owned()),
        _ => reader.refused(field, format!("{} is not a topic; {RULE}", quote(text))),
    }
}

fn timeouts(reader: &mut Reader<'_>, table: &Table<'_>, delivery: &mut DeliveryConfig) {
    let timeout_is_read = reader.set_duration(table, "timeout", &TIMEOUT, &mut delivery.timeout);
    let Some(field) = reader.field(table, "max_timeout") else { return };
    let Some(longest) = reader.duration(&field, &TIMEOUT, "") else { return };
    let timeout = delivery.timeout;
    if timeout_is_read && longest < timeout {
        let (longest, timeout) = (duration::format(longest), shown(table, "timeout", timeout));
        reader.refuse(&field, format!("\"{longest}\" is shorter than {timeout}; write it at least as long"));
    }
    // With the same length, the word of an attempt counts for nothing.
    delivery.max_timeout = (longest != timeout).then_some(longest);
}

fn retry(reader: &mut Reader<'_>, field: &Field<'_>) -> RetryPolicy {
    let mut retry = RetryPolicy::default();
    let rule = "write a table such as { max_attempts = 12, base = \"1s\", max = \"1h\" }";
    let Some(table) = reader.table(field, rule) else { return retry };
    reader.know(&table, keys::RETRY);
    if let Some(attempts) = reader.count(&table, "max_attempts") {
        retry.max_attempts = attempts.into();
    }
    let base_is_read = reader.set_duration(&table, "base", &RETRY_BASE, &mut retry.base);
    let max_is_read = reader.set_duration(&table, "max", &RETRY_MAX, &mut retry.max);
    if let Some(field) = reader.field(&table, "backoff") {
        let max = max_is_read.then_some(retry.max);
        retry.backoff = backoff(reader, &table, &field, max).unwrap_or_default();
    }
    let base_counts = !matches!(retry.backoff, Backoff::List(_));
    if base_counts && base_is_read && max_is_read && retry.base > retry.max {
        let (base, max) = (shown(&table, "base", retry.base), shown(&table, "max", retry.max));
        reader.refuse(field, format!("{base} is longer than {max}; write `base` at most as long as `max`"));
    }
    retry.concurrency = reader.count(&table, "concurrency").map(usize::from);
    retry.rate = reader.field(&table, "rate").and_then(|field| reader.integer(&field, RATE));
    retry
}

fn poll(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<PollPolicy> {
    let mut poll = PollPolicy::default();
    let table = reader.table(field, "write a table such as { base = \"5s\", max = \"5m\", timeout = \"1d\" }")?;
    reader.know(&table, keys::POLL);
    let base_is_read = reader.set_duration(&table, "base", &POLL_PAUSE, &mut poll.base);
    let max_is_read = reader.set_duration(&table, "max", &POLL_PAUSE, &mut poll.max);
    reader.set_duration(&table, "timeout", &POLL_TIMEOUT, &mut poll.timeout);
    if base_is_read && max_is_read && poll.base > poll.max {
        let (base, max) = (shown(&table, "base", poll.base), shown(&table, "max", poll.max));
        reader.refuse(field, format!("{base} is longer than {max}; write `base` at most as long as `max`"));
    }
    Some(poll)
}

fn rate(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<RateLimit> {
    let text = reader.string(field, rate::RULE)?;
    match text.parse() {
        Ok(rate) => Some(rate),
        Err(error) => reader.refused(field, error),
    }
}

fn batch(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<BatchConfig> {
    let rule = "write a table such as { max = 100, wait = \"1s\" }";
    let table = reader.table(field, rule)?;
    reader.know(&table, keys::BATCH);
    let mut wait = Duration::from_secs(1);
    reader.set_duration(&table, "wait", &BATCH_WAIT, &mut wait);
    let Some(max) = reader.field(&table, "max") else {
        reader.lacks(&table, format!("`max` is missing, how many events are handed over together; {rule}"));
        return None;
    };
    let max = usize::try_from(reader.integer(&max, BATCH_EVENTS)?).ok()?;
    Some(BatchConfig { max, wait })
}

fn max_backlog(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<MaxBacklog> {
    let rule = "write a table such as { events = 100000, then = \"refuse\" }";
    let table = reader.table(field, rule)?;
    reader.know(&table, keys::MAX_BACKLOG);
    let mut refuses = true;
    reader.set_choice(&table, "then", "what happens then", &[("refuse", true), ("warn", false)], &mut refuses);
    let Some(events) = reader.field(&table, "events") else {
        reader.lacks(&table, format!("`events` is missing, how many may wait; {rule}"));
        return None;
    };
    let events = reader.integer(&events, BACKLOG_EVENTS)?;
    Some(MaxBacklog { events, refuses })
}

/// What `max` is known to be cuts the pauses of a list, which is surely not what was meant.
fn backoff(reader: &mut Reader<'_>, table: &Table<'_>, field: &Field<'_>, max: Option<Duration>) -> Option<Backoff> {
    const RULE: &str =
        "write \"exponential\", \"linear\", \"fixed\" or an array of pauses such as [\"1s\", \"5s\", \"1m\"]";
    if !field.is_array() {
        let words = [("exponential", Backoff::Exponential), ("linear", Backoff::Linear), ("fixed", Backoff::Fixed)];
        return reader.choice(field, "a backoff", &words, RULE);
    }
    if let Some(base) = reader.field(table, "base") {
        reader.refuse(&base, "an array of pauses has no base; remove `base`, or write another `backoff`");
    }
    let texts = reader.strings(field, RULE)?;
    if texts.is_empty() || texts.len() > PAUSES_MAX {
        reader.refuse(field, format!("an array of {} pauses; write 1 to {PAUSES_MAX}", texts.len()));
    }
    let mut pauses = Vec::with_capacity(texts.len());
    for (item, text) in texts {
        let Some(pause) = reader.duration(&item, &RETRY_MAX, "") else { continue };
        if let Some(max) = max.filter(|max| pause > *max) {
            let max = shown(table, "max", max);
            reader
                .refuse(&item, format!("{} is longer than {max}; write pauses at most as long as `max`", quote(text)));
        }
        pauses.push(pause);
    }
    Some(Backoff::List(pauses))
}

/// What runs again takes slots of the handler.
fn retries_fit(reader: &mut Reader<'_>, table: &Table<'_>, field: &Field<'_>, delivery: &DeliveryConfig) {
    let (slots, Some(retries)) = (delivery.concurrency, delivery.retry.concurrency) else { return };
    not_above_concurrency(reader, table, field, "concurrency", retries, slots);
}

/// A part of a handler's slots cannot be more than all of them.
fn not_above_concurrency(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    field: &Field<'_>,
    name: &str,
    part: usize,
    slots: usize,
) {
    if part > slots {
        let note = if table.has("concurrency") { "" } else { " (the default)" };
        let rule = "write at most as many";
        reader.refuse(field, format!("`{name}` {part} is more than the handler's {slots}{note}; {rule}"));
    }
}

pub(super) fn ordered(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<OnDeadKey> {
    let field = reader.field(table, "ordered");
    let ordered = match &field {
        Some(field) => reader.boolean(field, "write true or false"),
        None => Some(false),
    };
    let mut on_dead_key = OnDeadKey::Block;
    let choices = [OnDeadKey::Block, OnDeadKey::Skip].map(|choice| (choice.as_str(), choice));
    reader.set_choice(table, "on_dead_key", "a way to go on", &choices, &mut on_dead_key);
    if let (Some(false), Some(field)) = (ordered, reader.field(table, "on_dead_key")) {
        reader.refuse(&field, "without order nobody waits for a dead delivery; write `ordered = true`, or remove it");
    }
    ordered.unwrap_or_default().then_some(on_dead_key)
}

/// Those of a key are merged one behind the other, so it keeps their order, and what is dead holds up nobody.
fn coalesce(reader: &mut Reader<'_>, table: &Table<'_>, delivery: &mut DeliveryConfig) {
    let Some(field) = reader.field(table, "coalesce") else { return };
    if reader.choice(&field, "what events are merged by", &[("key", ())], "write \"key\"").is_none() {
        return;
    }
    let rule = "events of one key are merged in their order";
    if let (None, Some(field)) = (delivery.ordered, reader.field(table, "ordered")) {
        reader.refuse(&field, format!("with `coalesce` {rule}; write true, or remove it"));
    }
    if let (Some(OnDeadKey::Block), Some(field)) = (delivery.ordered, reader.field(table, "on_dead_key")) {
        reader
            .refuse(&field, "with `coalesce` a later event does the work of a dead one; write \"skip\", or remove it");
    }
    (delivery.ordered, delivery.coalesce) = (Some(OnDeadKey::Skip), true);
}

/// Of ordered keys one runs at a time.
fn concurrency_per_key(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    delivery: &DeliveryConfig,
    slots_known: bool,
) -> Option<usize> {
    let field = reader.field(table, "concurrency_per_key")?;
    let most = usize::from(reader.count(table, "concurrency_per_key")?);
    if delivery.ordered.is_some() {
        let because = if delivery.coalesce { "coalesce" } else { "ordered" };
        return reader.refused(&field, format!("with `{because}` one of a key runs at a time; remove one of the two"));
    }
    if slots_known {
        not_above_concurrency(reader, table, &field, "concurrency_per_key", most, delivery.concurrency);
    }
    Some(most)
}

/// A key and its value as a message shows them.
fn shown(table: &Table<'_>, name: &str, value: Duration) -> String {
    let note = if table.has(name) { "" } else { " (the default)" };
    format!("`{name}` \"{}\"{note}", duration::format(value))
}
