//! `enqueue`: what the bell and a daemon at work cost those who commit events.

use std::time::Duration;

use super::super::Failure;
use super::load::Producers;
use super::part::{Part, Role};
use super::report::{Figure, Target};
use super::stand::Stand;

/// The three ways are measured in turn so many times, each time in another order, because neither the machine nor the table is the
/// same from one second to the next.
const ROUNDS: u32 = 6;

/// Who is there while producers commit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Neither trigger nor daemon.
    Unread,
    /// A daemon that works, and nobody rings.
    WithoutTrigger,
    WithTrigger,
}

/// What producers did in one round.
struct Flooded {
    commits: f64,
    rings: f64,
}

pub(super) async fn run(stand: &Stand, producers: u32, how_long: Duration) -> Result<Vec<Figure>, Failure> {
    stand.fresh().await?;
    let sessions = Producers::connect(stand, producers).await?;
    let each = how_long / ROUNDS;
    let mut ways = [Way::Unread, Way::WithoutTrigger, Way::WithTrigger];
    let mut sums = [0.0; 3];
    let mut rings = 0.0;
    for _ in 0..ROUNDS {
        for way in ways {
            let flooded = flood(stand, &sessions, way, each).await?;
            sums[way as usize] += flooded.commits / f64::from(ROUNDS);
            rings += flooded.rings;
        }
        ways.rotate_left(1);
    }
    let [unread, without_trigger, with_trigger] = sums;
    Ok(vec![
        Figure::new("commits/s, and without the trigger", with_trigger)
            .floor(without_trigger)
            .target(Target::RatioAtLeast(0.95)),
        Figure::new("commits/s, and without trigger and daemon", with_trigger).floor(unread),
        Figure::new("notifications/s", rings / how_long.as_secs_f64()).target(Target::AtMost(100.0)),
    ])
}

async fn flood(stand: &Stand, sessions: &Producers, way: Way, how_long: Duration) -> Result<Flooded, Failure> {
    stand.trigger(way == Way::WithTrigger).await?;
    if way == Way::Unread {
        return Ok(Flooded { commits: sessions.flood(how_long).await?, rings: 0.0 });
    }
    let mut daemon = Part::start(stand, &Role::Daemon { handlers: 1, takes: 0, tells: false })?;
    daemon.says_that("ready").await?;
    stand.until_done(1).await?;
    let before = daemon.rings().await?;
    // Without the trigger nobody rings, so the daemon is told that it begins; then it stays awake.
    let told = async {
        if way == Way::WithoutTrigger {
            tokio::time::sleep(how_long / 100).await;
            stand.session.client.batch_execute("NOTIFY outbox").await?;
        }
        Ok(())
    };
    let (commits, ()) = tokio::try_join!(sessions.flood(how_long), told)?;
    let rings = if way == Way::WithTrigger { daemon.rings().await? - before } else { 0.0 };
    stand.until_done(1).await?;
    daemon.stop().await?;
    Ok(Flooded { commits, rings })
}
