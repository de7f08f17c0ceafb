//! `[schedule.NAME]`: when an event is to come of itself, and which.

use std::sync::Arc;

use toml::de::DeValue;

use super::delivery::topic;
use super::reader::{Field, Reader};
use super::text::quote;
use super::{ScheduleConfig, keys};
use crate::timetable::{Timetable, TimetableError};

const CATCH_UP: std::ops::RangeInclusive<u32> = 1..=1000;
const PAYLOAD_BYTES_MAX: usize = 65_536;
const KEY_BYTES_MAX: usize = 512;

pub(super) fn read(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<ScheduleConfig> {
    const CRON: &str = "write minute, hour, day, month and weekday, such as \"30 3 * * *\"";
    let table = reader.table(field, "write a table: [schedule.NAME]")?;
    reader.know(&table, keys::SCHEDULE);
    let zone = reader.field(&table, "timezone");
    let zone_name = match &zone {
        Some(field) => reader.string(field, "write a time zone such as \"Europe/Berlin\"").map(ToOwned::to_owned),
        None => Some("UTC".to_owned()),
    };
    let timetable = if let Some(cron) = reader.field(&table, "cron") {
        let expression = reader.string(&cron, CRON).map(ToOwned::to_owned);
        expression.zip(zone_name).and_then(|(expression, zone_name)| {
            match (Timetable::new(&expression, &zone_name), &zone) {
                (Ok(timetable), _) => Some(timetable),
                (Err(error @ TimetableError::Zone(_)), Some(zone)) => reader.refused(zone, error.to_string()),
                (Err(error), _) => reader.refused(&cron, error.to_string()),
            }
        })
    } else {
        reader.lacks(&table, format!("`cron` is missing; {CRON}"));
        None
    };
    let topic = if let Some(field) = reader.field(&table, "topic") {
        topic(reader, &field)
    } else {
        reader.lacks(&table, "`topic` is missing; write the topic of its events, such as \"report.wanted\"");
        None
    };
    let payload = match reader.field(&table, "payload") {
        Some(field) => payload(reader, &field),
        None => Some("{}".to_owned()),
    };
    let key = reader.field(&table, "key").and_then(|field| key(reader, &field));
    let catch_up = reader.field(&table, "catch_up").and_then(|field| reader.integer(&field, CATCH_UP)).unwrap_or(1);
    let (name, catch_up) = (Arc::from(field.name), usize::try_from(catch_up).unwrap_or(1));
    Some(ScheduleConfig { name, timetable: timetable?, topic: topic?, payload: payload?, key, catch_up })
}

fn payload(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<String> {
    let json = json(field.value()).or_else(|| {
        reader.refused(field, "this cannot be JSON; write integers of 64 bits and finite numbers".into())
    })?;
    let text = json.to_string();
    if text.len() > PAYLOAD_BYTES_MAX {
        return reader
            .refused(field, format!("{} bytes of JSON are too many; write at most {PAYLOAD_BYTES_MAX}", text.len()));
    }
    if text.contains("\\u0000") {
        return reader.refused(field, "this holds a NUL, which PostgreSQL cannot store; remove it".into());
    }
    Some(text)
}

fn key(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<String> {
    let rule = format!("write 1 to {KEY_BYTES_MAX} bytes without control characters");
    let key = reader.string(field, &rule)?;
    if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains(char::is_control) {
        return reader.refused(field, format!("{} is not a key; {rule}", quote(key)));
    }
    Some(key.to_owned())
}

/// A value of TOML as one of JSON; dates become texts.
fn json(value: &DeValue<'_>) -> Option<serde_json::Value> {
    Some(match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix()).ok()?.into(),
        DeValue::Float(float) => serde_json::Number::from_f64(float.as_str().parse().ok()?)?.into(),
        DeValue::Boolean(boolean) => (*boolean).into(),
        DeValue::Datetime(datetime) => datetime.to_string().into(),
        DeValue::Array(values) => values.iter().map(|value| json(value.get_ref())).collect::<Option<Vec<_>>>()?.into(),
        DeValue::Table(table) => table
            .iter()
            .map(|(name, value)| Some((name.get_ref().to_string(), json(value.get_ref())?)))
            .collect::<Option<serde_json::Map<_, _>>>()?
            .into(),
    })
}
