//! `restart`: a daemon that begins where a lot has been done and a lot waits.

use super::super::Failure;
use super::clock;
use super::part::{Part, Role};
use super::report::{Figure, Target};
use super::stand::Stand;

/// Of so many events that are done, one waits for its time in `outbox.open`, and one more has come since.
const DONE_FOR_ONE: u32 = 10;
/// To make all of that takes minutes, to start takes none.
const STARTS: u32 = 5;
const ROWS_TOGETHER: i64 = 200_000;

pub(super) async fn run(stand: &Stand, done: u32) -> Result<Vec<Figure>, Failure> {
    let role = Role::Daemon { handlers: 1, takes: 0, tells: false };
    stand.fresh().await?;
    // The handler is registered by the daemon itself.
    let mut daemon = Part::start(stand, &role)?;
    daemon.says_that("ready").await?;
    daemon.stop().await?;
    let waiting = done / DONE_FOR_ONE;
    stand.fill(done + waiting).await?;
    settle(stand, done.into()).await?;
    let mut slowest = 0f64;
    for start in 1..=STARTS {
        stand.fill_more(done + start * waiting, waiting).await?;
        let began = clock::now();
        let mut daemon = Part::start(stand, &role)?;
        let first = daemon.says_when("first").await?;
        slowest = slowest.max(clock::between(began, first).as_secs_f64());
        daemon.stop().await?;
    }
    let what = "seconds from the start to the first attempt, the slowest of five";
    Ok(vec![Figure::new(what, slowest).target(Target::AtMost(2.0))])
}

/// As a daemon would have left it: outcomes for the first events, rows that wait for the rest, and a position behind them all.
async fn settle(stand: &Stand, done: i64) -> Result<(), Failure> {
    let client = &stand.session.client;
    let append = "INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at) \
                  SELECT n, 'bench_1', 'done', 1, now(), now() FROM generate_series($1::bigint, $2::bigint) n";
    let append = client.prepare(append).await?;
    let mut from = 1;
    while from <= done {
        let to = done.min(from + ROWS_TOGETHER - 1);
        client.execute(&append, &[&from, &to]).await?;
        from = to + 1;
    }
    let open = "INSERT INTO outbox.open (event_id, handler, state, due_at, topic, key, payload, headers, priority, created_at) \
                SELECT id, 'bench_1', 'scheduled', now() + interval '1 day', topic, key, payload, headers, priority, created_at \
                FROM outbox.event WHERE id > $1";
    client.execute(open, &[&done]).await?;
    let position =
        "INSERT INTO outbox.position (handler, position, finished) SELECT 'bench_1', pg_current_snapshot(), $1";
    client.execute(position, &[&done]).await?;
    Ok(client.batch_execute("VACUUM (ANALYZE) outbox.done, outbox.open").await?)
}
