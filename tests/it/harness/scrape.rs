//! The daemon's own port, as Prometheus and a load balancer see it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What `/metrics` says.
#[derive(Debug)]
pub(crate) struct Scrape {
    /// The type of each metric.
    pub(crate) types: BTreeMap<String, String>,
    /// The value of each series, under its name and labels as they are written.
    values: BTreeMap<String, String>,
}

/// The status and the body of an answer.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let client = outboxd::handler::http::client().unwrap();
    let response = client.get(format!("http://{address}{path}")).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

pub(crate) async fn scrape(address: SocketAddr) -> Scrape {
    let (status, text) = get(address, "/metrics").await;
    assert_eq!(status, 200, "{text}");
    Scrape::of(&text)
}

impl Scrape {
    /// Reads the text format, and holds it to its rules: HELP and TYPE once and before the samples, which stand together and
    /// are there once each.
    fn of(text: &str) -> Self {
        assert!(text.ends_with('\n'));
        let (mut types, mut values) = (BTreeMap::new(), BTreeMap::new());
        let (mut helped, mut current) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(!help.is_empty() && !types.contains_key(name), "{line}");
                name.clone_into(&mut helped);
            } else if let Some(of) = line.strip_prefix("# TYPE ") {
                let (name, kind) = of.split_once(' ').unwrap();
                assert_eq!(name, helped, "HELP comes first: {line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                types.insert(name.to_owned(), kind.to_owned());
                name.clone_into(&mut current);
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                let parts =
                    [&*current, &format!("{current}_bucket"), &format!("{current}_sum"), &format!("{current}_count")];
                let allowed = if types[&current] == "histogram" { &parts[1..] } else { &parts[..1] };
                assert!(allowed.contains(&name), "{line} below {current}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(values.insert(series.to_owned(), value.to_owned()).is_none(), "twice: {line}");
            }
        }
        Self { types, values }
    }

    /// The value of a series that counts, written as Prometheus does: `name{label="value"}`.
    #[track_caller]
    pub(crate) fn value(&self, series: &str) -> u64 {
        let value = self.values.get(series);
        value.unwrap_or_else(|| panic!("{series} is not among {:#?}", self.values.keys())).parse().unwrap()
    }

    /// The same of one that is no whole number.
    #[track_caller]
    pub(crate) fn float(&self, series: &str) -> f64 {
        self.values.get(series).unwrap_or_else(|| panic!("{series} is not there")).parse().unwrap()
    }

    /// The value of a handler's series.
    #[track_caller]
    pub(crate) fn of_handler(&self, name: &str, handler: &str) -> u64 {
        self.value(&format!("{name}{{handler=\"{handler}\"}}"))
    }

    /// How many attempts of a handler ended like this.
    #[track_caller]
    pub(crate) fn attempts(&self, handler: &str, outcome: &str) -> u64 {
        self.value(&format!("outboxd_attempts_total{{handler=\"{handler}\",outcome=\"{outcome}\"}}"))
    }

    /// Every series, with its labels, whose name or labels contain this.
    pub(crate) fn series(&self, text: &str) -> Vec<&str> {
        self.values.keys().map(String::as_str).filter(|series| series.contains(text)).collect()
    }
}
