//! What became of the deliveries, in numbers: all of them from the tables.

use serde::Serialize;
use tokio_postgres::{Client, Row};

use super::super::Failure;
use super::super::output::{or_dash, table};

/// The median and the 99th percentile, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Percentiles {
    p50: f64,
    p99: f64,
}

/// One handler's line.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    handler: String,
    kind: String,
    done: i64,
    retried: i64,
    dead: i64,
    /// From the insert to the end of the attempt that succeeded, pauses between attempts included.
    latency_ms: Option<Percentiles>,
    /// That attempt alone.
    run_ms: Option<Percentiles>,
}

pub(super) async fn lines(client: &Client) -> Result<Vec<Line>, Failure> {
    let rows = client.query(include_str!("summary.sql"), &[]).await?;
    let line = |row: &Row| Line {
        handler: row.get("handler"),
        kind: row.get("kind"),
        done: row.get("done"),
        retried: row.get("retried"),
        dead: row.get("dead"),
        latency_ms: percentiles(row, "latency"),
        run_ms: percentiles(row, "run"),
    };
    Ok(rows.iter().map(line).collect())
}

pub(super) fn told(lines: &[Line]) -> String {
    let header =
        ["HANDLER", "KIND", "DONE", "RETRIED", "DEAD", "LATENCY p50", "LATENCY p99", "RUN TIME p50", "RUN TIME p99"];
    let table = table(
        header,
        lines.iter().map(|line| {
            let (latency, run) = (line.latency_ms, line.run_ms);
            [
                line.handler.clone(),
                line.kind.clone(),
                line.done.to_string(),
                line.retried.to_string(),
                line.dead.to_string(),
                or_dash(latency.map(|latency| ms(latency.p50))),
                or_dash(latency.map(|latency| ms(latency.p99))),
                or_dash(run.map(|run| ms(run.p50))),
                or_dash(run.map(|run| ms(run.p99))),
            ]
        }),
    );
    format!("{table}\nLatency is the time from the insert to the end of the attempt that succeeded, pauses included.\n")
}

/// Everything so far, in one line.
pub(super) async fn total(client: &Client) -> Result<String, Failure> {
    let row = client.query_one(include_str!("totals.sql"), &[]).await?;
    let count = |name: &str| row.get::<_, i64>(name);
    let latency = percentiles(&row, "latency").map_or_else(String::new, |Percentiles { p50, p99 }| {
        format!(" · first attempts: p50 {}, p99 {}", ms(p50), ms(p99))
    });
    Ok(format!(
        "{} events · {} deliveries done · {} retried · {} dead{latency}",
        count("events"),
        count("done"),
        count("retried"),
        count("dead"),
    ))
}

fn percentiles(row: &Row, name: &str) -> Option<Percentiles> {
    match row.get::<_, Option<Vec<f64>>>(name)?[..] {
        [p50, p99] => Some(Percentiles { p50, p99 }),
        _ => None,
    }
}

/// A time in milliseconds as people read it.
pub(super) fn ms(ms: f64) -> String {
    if ms < 10_000.0 { format!("{ms:.1} ms") } else { format!("{:.1} s", ms / 1e3) }
}
