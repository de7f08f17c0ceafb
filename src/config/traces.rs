//! The `[traces]` table: where spans of deliveries are sent.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use reqwest::Url;
use toml::de::DeValue;

use super::reader::{Field, Reader};
use super::{Secret, keys, kind};

/// Where OTLP over HTTP takes traces, below the endpoint.
const PATH: &str = "v1/traces";

/// The `[traces]` table.
#[derive(Debug, Clone, PartialEq)]
pub struct TracesConfig {
    /// `http` or `https`, without credentials, query and fragment.
    pub endpoint: Url,
    /// Sent with every request.
    pub headers: BTreeMap<String, Secret>,
    /// What part of the traces is exported that begin with an event, from 0 to 1.
    pub sample: f64,
}

impl TracesConfig {
    /// Where spans are posted: below the endpoint, as the specification of OTLP says.
    #[must_use]
    pub fn url(&self) -> Url {
        let mut url = self.endpoint.clone();
        url.set_path(&format!("{}/{PATH}", self.endpoint.path().trim_end_matches('/')));
        url
    }
}

pub(super) fn read(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<TracesConfig> {
    let table = reader.table(field, "write a table: [traces]")?;
    reader.know(&table, keys::TRACES);
    let headers = reader.field(&table, "headers").map(|field| kind::headers(reader, &field)).unwrap_or_default();
    let sample = reader.field(&table, "sample").map_or(Some(1.0), |field| part(reader, &field));
    let Some(field) = reader.field(&table, "endpoint") else {
        let rule = "write where a receiver of OTLP over HTTP is, such as \"http://127.0.0.1:4318\"";
        reader.lacks(&table, format!("`endpoint` is missing; {rule}"));
        return None;
    };
    let endpoint = kind::url(reader, &field)?;
    if endpoint.query().is_some() {
        return reader.refused(&field, "the URL has a query (?...); send tokens in `headers`".into());
    }
    if endpoint.path().trim_end_matches('/').ends_with(&format!("/{PATH}")) {
        return reader.refused(&field, format!("the URL ends with /{PATH}, which is appended; remove it"));
    }
    Some(TracesConfig { endpoint, headers, sample: sample? })
}

fn part(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<f64> {
    let rule = "write a number from 0 to 1, such as 0.1";
    let number = match field.value() {
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::Float(float) => float.to_string(),
        _ => return reader.refused(field, format!("this is no number; {rule}")),
    };
    let part = number.replace('_', "").parse().ok().filter(|part| (0.0..=1.0).contains(part));
    part.or_else(|| reader.refused(field, format!("this is out of range; {rule}")))
}

/// The table as TOML; `endpoint` and `headers` as they are written there, secrets hidden.
pub(super) fn write(out: &mut String, config: &TracesConfig, endpoint: &str, headers: Option<&str>) -> fmt::Result {
    write!(out, "\n[traces]\nendpoint = {endpoint}\n")?;
    if let Some(headers) = headers {
        writeln!(out, "headers = {headers}")?;
    }
    writeln!(out, "sample = {:?}", config.sample)
}
