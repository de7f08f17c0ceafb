//! `drain`, `fanout`, `flow` and `backlog`: a log that is there already, worked off as fast as it goes.

use super::super::Failure;
use super::clock;
use super::part::{Part, Role};
use super::report::{Figure, Target};
use super::stand::Stand;

/// A drain as it went.
struct Drained {
    /// Deliveries a second, from the first attempt to the last committed outcome.
    rate: f64,
    peak_mib: f64,
}

/// `handlers` handlers that do nothing, each for all of the events.
pub(super) async fn run(stand: &Stand, events: u32, handlers: u32) -> Result<Vec<Figure>, Failure> {
    let deliveries = f64::from(events) * f64::from(handlers);
    let floor = floor(stand, events, handlers).await?;

    stand.fresh().await?;
    stand.fill(events).await?;
    let mark = stand.mark().await?;
    let mut daemon = Part::start(stand, &Role::Daemon { handlers, takes: 0, tells: false })?;
    let first = daemon.says_when("first").await?;
    let last = stand.until_done(handlers).await?;
    let spent = stand.since(&mark).await?;
    let used = daemon.used()?;
    daemon.stop().await?;

    let rate = deliveries / clock::between(first, last).as_secs_f64();
    let thousands = deliveries / 1000.0;
    let mut figures = vec![
        Figure::new("deliveries/s", rate).floor(floor.rate).target(Target::RatioAtLeast(0.7)),
        Figure::new("WAL bytes/delivery", spent.wal_bytes / deliveries)
            .floor(floor.wal_bytes / deliveries)
            .target(Target::AtMost(200.0)),
        Figure::new("daemon CPU ms/1,000 deliveries", used.cpu_seconds * 1000.0 / thousands)
            .floor(floor.own_seconds * 1000.0 / thousands),
    ];
    if let (Some(cpu), Some(floor)) = (spent.cpu_seconds, floor.cpu_seconds) {
        figures.push(
            Figure::new("server CPU ms/1,000 deliveries", cpu * 1000.0 / thousands).floor(floor * 1000.0 / thousands),
        );
    }
    figures.push(Figure::new("dead tuples", stand.dead_tuples().await?).target(Target::AtMost(0.0)));
    figures.push(Figure::new("daemon's peak memory, MiB", mib(used.peak_bytes)));
    Ok(figures)
}

struct Floor {
    rate: f64,
    wal_bytes: f64,
    /// Of the server.
    cpu_seconds: Option<f64>,
    /// Of the process that reads and writes.
    own_seconds: f64,
}

async fn floor(stand: &Stand, events: u32, handlers: u32) -> Result<Floor, Failure> {
    stand.fresh().await?;
    stand.fill(events).await?;
    let mark = stand.mark().await?;
    let mut part = Part::start(stand, &Role::DrainFloor { handlers })?;
    let first = part.says_when("first").await?;
    let last = part.says_when("last").await?;
    let spent = stand.since(&mark).await?;
    let used = part.used()?;
    part.stop().await?;
    let rate = f64::from(events) * f64::from(handlers) / clock::between(first, last).as_secs_f64();
    Ok(Floor { rate, wal_bytes: spent.wal_bytes, cpu_seconds: spent.cpu_seconds, own_seconds: used.cpu_seconds })
}

/// Steps of the flow that is measured, and handlers that it is compared with.
const STEPS: u32 = 5;

/// A flow of steps that do nothing beside as many handlers that do nothing, each for all of the events.
pub(super) async fn flow(stand: &Stand, events: u32) -> Result<Vec<Figure>, Failure> {
    let apart = worked_off(stand, events, &Role::Daemon { handlers: STEPS, takes: 0, tells: false }, STEPS).await?;
    // The instance has a row, too.
    let together = worked_off(stand, events, &Role::Flow { steps: STEPS }, STEPS + 1).await?;
    Ok(vec![
        Figure::new("events/s, and with five handlers", together.rate)
            .floor(apart.rate)
            .target(Target::RatioAtLeast(0.4)),
        Figure::new("WAL bytes/event, and with five handlers", together.wal_bytes).floor(apart.wal_bytes),
        Figure::new("daemon and server CPU ms/1,000 events, and with five handlers", together.cpu_ms)
            .floor(apart.cpu_ms)
            .target(Target::RatioAtMost(2.5)),
    ])
}

/// What an event has cost.
struct Cost {
    rate: f64,
    wal_bytes: f64,
    cpu_ms: f64,
}

async fn worked_off(stand: &Stand, events: u32, role: &Role, rows: u32) -> Result<Cost, Failure> {
    stand.fresh().await?;
    stand.fill(events).await?;
    let mark = stand.mark().await?;
    let mut daemon = Part::start(stand, role)?;
    let first = daemon.says_when("first").await?;
    let last = stand.until_done(rows).await?;
    let spent = stand.since(&mark).await?;
    let used = daemon.used()?;
    daemon.stop().await?;
    let events = f64::from(events);
    Ok(Cost {
        rate: events / clock::between(first, last).as_secs_f64(),
        wal_bytes: spent.wal_bytes / events,
        cpu_ms: (used.cpu_seconds + spent.cpu_seconds.unwrap_or_default()) * 1e6 / events,
    })
}

/// The rate and the memory with a backlog of this size and with one of a tenth of it.
pub(super) async fn backlog(stand: &Stand, events: u32) -> Result<Vec<Figure>, Failure> {
    let small = one(stand, events / 10).await?;
    let large = one(stand, events).await?;
    Ok(vec![
        Figure::new("deliveries/s, compared with a tenth of it", large.rate)
            .floor(small.rate)
            .target(Target::RatioAtLeast(0.9)),
        Figure::new("daemon's peak memory, MiB", large.peak_mib).floor(small.peak_mib),
        Figure::new("peak memory more than with a tenth of it, MiB", large.peak_mib - small.peak_mib)
            .target(Target::AtMost(20.0)),
    ])
}

async fn one(stand: &Stand, events: u32) -> Result<Drained, Failure> {
    stand.fresh().await?;
    stand.fill(events).await?;
    let mut daemon = Part::start(stand, &Role::Daemon { handlers: 1, takes: 0, tells: false })?;
    let first = daemon.says_when("first").await?;
    let last = stand.until_done(1).await?;
    let used = daemon.used()?;
    daemon.stop().await?;
    Ok(Drained { rate: f64::from(events) / clock::between(first, last).as_secs_f64(), peak_mib: mib(used.peak_bytes) })
}

#[expect(clippy::cast_precision_loss, reason = "no process has 2^53 bytes")]
pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
