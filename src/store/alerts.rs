//! Alerts: which are raised, and the events that tell of it.

use std::collections::HashSet;

use serde_json::json;

use super::{Error, Store, sql};

/// What an event tells of an alert. `when`, `value` and `above` are not known of one that has left the configuration.
#[derive(Debug)]
pub struct Alert<'a> {
    pub name: &'a str,
    /// Empty: it is about the daemon.
    pub handler: &'a str,
    pub when: Option<&'static str>,
    pub value: Option<f64>,
    pub above: Option<f64>,
}

impl Store {
    /// The alerts that are raised: name and handler.
    pub async fn raised_alerts(&self) -> Result<HashSet<(String, String)>, Error> {
        let rows = self.query(sql!("raised_alerts"), &[]).await?;
        Ok(rows.iter().map(|row| (row.get("name"), row.get("handler"))).collect())
    }

    /// Raises or clears one, and emits the event that tells. `false`: somebody else has.
    pub async fn tell_alert(&self, alert: &Alert<'_>, raised: bool) -> Result<bool, Error> {
        let Alert { name, handler, when, value, above } = alert;
        let handler_told = Some(*handler).filter(|handler| !handler.is_empty());
        let (value, above) = (value.map(number), above.map(number));
        let told = json!({ "alert": name, "handler": handler_told, "when": when, "value": value, "above": above });
        let sql = if raised { sql!("raise_alert") } else { sql!("clear_alert") };
        Ok(self.query_opt(sql, &[name, handler, &told]).await?.is_some())
    }
}

/// A number as somebody would write it: a count has no fraction, and of seconds a thousandth is enough.
fn number(value: f64) -> serde_json::Value {
    let thousandth = (value * 1000.0).round() / 1000.0;
    if thousandth.fract() == 0.0 && thousandth.abs() < 1e15 {
        #[expect(clippy::cast_possible_truncation, reason = "it is a whole number that fits")]
        return json!(thousandth as i64);
    }
    json!(thousandth)
}
