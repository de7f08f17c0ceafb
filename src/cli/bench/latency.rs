//! `latency`, `steady` and `held-xmin`: from the acknowledged commit to the beginning of the handler.

use std::collections::HashMap;
use std::time::Duration;

use super::super::Failure;
use super::clock;
use super::load::{Committed, Producers};
use super::part::{Part, Role};
use super::report::{Figure, Target, percentile};
use super::stand::Stand;

/// Sessions that share a steady load.
const PRODUCERS: u32 = 16;
/// What a handler of a steady load takes, in ms.
const TAKES: u64 = 5;
/// Between two lone events: the daemon sleeps again, and they do not come in step with anything.
const PAUSE_MS: std::ops::Range<u64> = 25..50;

/// One event at a time while nothing else happens.
pub(super) async fn idle(stand: &Stand, events: u32) -> Result<Vec<Figure>, Failure> {
    stand.fresh().await?;
    let (ours, floor) = lone(stand, events, 0).await?;
    let figure = |what, share, ratio| {
        Figure::new(what, percentile(&ours, share)).floor(percentile(&floor, share)).target(Target::RatioAtMost(ratio))
    };
    Ok(vec![figure("commit to handler p50, ms", 0.5, 1.3), figure("commit to handler p99, ms", 0.99, 2.0)])
}

/// A load that the handler can bear, after lone events that it is compared with.
pub(super) async fn steady(
    stand: &Stand,
    lone_events: u32,
    rate: u32,
    how_long: Duration,
) -> Result<Vec<Figure>, Failure> {
    stand.fresh().await?;
    let (idle, _) = lone(stand, lone_events, TAKES).await?;
    let queued = queued(stand, rate, how_long).await?;
    Ok(vec![
        Figure::new("commit to handler p50, ms, and idle", percentile(&queued, 0.5)).floor(percentile(&idle, 0.5)),
        Figure::new("commit to handler p99, ms, and idle", percentile(&queued, 0.99))
            .floor(percentile(&idle, 0.99))
            .target(Target::RatioAtMost(3.0)),
    ])
}

/// A steady load while somebody holds a snapshot, so that nothing can be vacuumed.
pub(super) async fn held_xmin(stand: &Stand, rate: u32, how_long: Duration) -> Result<Vec<Figure>, Failure> {
    stand.fresh().await?;
    let holder = stand.target().connect("bench holds").await?;
    holder.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class").await?;
    let queued = queued(stand, rate, how_long).await?;
    let fifth = queued.len() / 5;
    let (first, last) = (&queued[..fifth], &queued[queued.len() - fifth..]);
    holder.client.batch_execute("ROLLBACK").await?;
    Ok(vec![
        Figure::new("commit to handler p50, ms, last fifth and first", percentile(last, 0.5))
            .floor(percentile(first, 0.5)),
        Figure::new("commit to handler p99, ms, last fifth and first", percentile(last, 0.99))
            .floor(percentile(first, 0.99))
            .target(Target::RatioAtMost(1.2)),
        Figure::new("dead tuples", stand.dead_tuples().await?).target(Target::AtMost(0.0)),
    ])
}

/// Queue times in ms of lone events, of the daemon's and of the floor's, which take turns.
async fn lone(stand: &Stand, events: u32, takes: u64) -> Result<(Vec<f64>, Vec<f64>), Failure> {
    let table =
        "CREATE TABLE outbox.bench_floor (LIKE outbox.event INCLUDING DEFAULTS INCLUDING IDENTITY INCLUDING INDEXES)";
    stand.session.client.batch_execute(table).await?;
    let producer = Producers::connect(stand, 1).await?;
    let rings = "WITH e AS (INSERT INTO outbox.bench_floor (topic, key, payload) \
                 VALUES ('bench.event', $1, jsonb_build_object('n', $2::bigint, 'pad', repeat('x', 180))) RETURNING id) \
                 SELECT id, pg_notify('bench_floor', '') FROM e";
    let rings = stand.session.client.prepare(rings).await?;
    let mut daemon = Part::start(stand, &Role::Daemon { handlers: 1, takes, tells: true })?;
    daemon.says_that("ready").await?;
    let mut listener = Part::start(stand, &Role::ListenFloor)?;
    listener.says_that("ready").await?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for n in 0..i64::from(events) {
        pause().await;
        let committed = producer.one(n).await?;
        let began = daemon.says_when(&committed.id.to_string()).await?;
        ours.push(ms(committed.at, began));
        pause().await;
        let row = stand.session.client.query_one(&rings, &[&format!("k{n}"), &n]).await?;
        let committed = Committed { id: row.get(0), at: clock::now() };
        let began = listener.says_when(&committed.id.to_string()).await?;
        floor.push(ms(committed.at, began));
    }
    listener.stop().await?;
    daemon.stop().await?;
    Ok((ours, floor))
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(PAUSE_MS))).await;
}

/// Queue times in ms under a load, in the order of the commits.
async fn queued(stand: &Stand, rate: u32, how_long: Duration) -> Result<Vec<f64>, Failure> {
    let producers = Producers::connect(stand, PRODUCERS).await?;
    let mut daemon = Part::start(stand, &Role::Daemon { handlers: 1, takes: TAKES, tells: true })?;
    daemon.says_that("ready").await?;
    let mut begun = HashMap::new();
    let committed = {
        let load = producers.paced(rate, how_long);
        tokio::pin!(load);
        loop {
            tokio::select! {
                committed = &mut load => break committed?,
                line = daemon.says() => begun.extend([beginning(&line?)?]),
            }
        }
    };
    while committed.iter().any(|committed| !begun.contains_key(&committed.id)) {
        begun.extend([beginning(&daemon.says().await?)?]);
    }
    daemon.stop().await?;
    Ok(committed.iter().filter_map(|committed| Some(ms(committed.at, *begun.get(&committed.id)?))).collect())
}

fn beginning(line: &str) -> Result<(i64, i64), Failure> {
    let numbers = line.split_once(' ').and_then(|(id, at)| id.parse().ok().zip(at.parse().ok()));
    numbers.ok_or_else(|| Failure::internal(format!("a part of the bench said {line:?} for a beginning")))
}

fn ms(from: i64, to: i64) -> f64 {
    clock::between(from, to).as_secs_f64() * 1000.0
}
