//! `enqueue`: what the bell and a daemon at work cost those who commit events.

use std::time::Duration;

use super::super::Failure;
use super::load::Producers;
use super::part::{Part, Role};
use super::report::{Figure, Target};
use super::stand::Stand;

/// The three ways are measured in turn so many times, because the machine is not the same from one second to the next.
const ROUNDS: u32 = 5;

/// Commits a second: with the trigger and a daemon that works; without the trigger and with the same daemon; without both.
#[derive(Default)]
struct Commits {
    with_trigger: f64,
    without_trigger: f64,
    unread: f64,
}

pub(super) async fn run(stand: &Stand, producers: u32, how_long: Duration) -> Result<Vec<Figure>, Failure> {
    stand.fresh().await?;
    let sessions = Producers::connect(stand, producers).await?;
    let each = how_long / ROUNDS;
    let mut commits = Commits::default();
    let (mut rings, mut seconds) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        stand.trigger(false).await?;
        commits.unread += sessions.flood(each).await? / f64::from(ROUNDS);

        let mut daemon = Part::start(stand, &Role::Daemon { handlers: 1, takes: 0, tells: false })?;
        daemon.says_that("ready").await?;
        stand.until_done(1).await?;
        // Nobody rings, so the daemon is told that it begins; then it stays awake.
        let told = async {
            tokio::time::sleep(each / 100).await;
            stand.session.client.batch_execute("NOTIFY outbox").await.map_err(Failure::from)
        };
        commits.without_trigger += tokio::try_join!(sessions.flood(each), told)?.0 / f64::from(ROUNDS);
        stand.until_done(1).await?;

        stand.trigger(true).await?;
        let before = daemon.rings().await?;
        commits.with_trigger += sessions.flood(each).await? / f64::from(ROUNDS);
        rings += daemon.rings().await? - before;
        seconds += each.as_secs_f64();
        stand.until_done(1).await?;
        daemon.stop().await?;
    }
    Ok(vec![
        Figure::new("commits/s, and without the trigger", commits.with_trigger)
            .floor(commits.without_trigger)
            .target(Target::RatioAtLeast(0.95)),
        Figure::new("commits/s, and without trigger and daemon", commits.with_trigger).floor(commits.unread),
        Figure::new("notifications/s", rings / seconds).target(Target::AtMost(100.0)),
    ])
}
