//! `outboxd demo`: a few events per second, and a line for everything that happens, until somebody has seen enough.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::super::Failure;
use super::app::App;
use super::screen::Screen;
use super::stage::Stage;
use super::teller::Teller;
use super::{start, summary};
use crate::postgres::Session;

const INSERT_EVERY: Duration = Duration::from_millis(400);
/// A visitor's psql may hold a lock on what the last summary reads.
const SUMMARY_MAX: Duration = Duration::from_secs(5);

/// Plays until `stop` is cancelled or nobody reads any more. Everything is removed when this returns, whatever it returns.
pub(super) async fn run(screen: &Screen, stop: &CancellationToken) -> Result<(), Failure> {
    let Some(mut stage) = start(stop, |text| screen.print(text)).await? else { return Ok(()) };
    let played = play(&mut stage, screen, stop).await;
    let summary = match (&played, timeout(SUMMARY_MAX, summary(&mut stage)).await) {
        (Ok(()), Ok(summary)) => summary,
        // What failed before is what is told.
        _ => Ok(String::new()),
    };
    stage.remove().await?;
    played?;
    screen.print(&format!("\n{}\nPostgreSQL and its folder are gone.\n", summary?));
    Ok(())
}

async fn play(stage: &mut Stage, screen: &Screen, stop: &CancellationToken) -> Result<(), Failure> {
    let app = App(stage.session().await?);
    let session = stage.session().await?;
    screen.print(&welcome(stage, screen, &session));
    let teller = Teller::start(session, screen, stage.psql_line()).await?;
    tokio::select! {
        result = insert(app) => result,
        result = teller.tell(&mut stage.observations) => result,
        () = stop.cancelled() => Ok(()),
        () = screen.closed() => Ok(()),
    }
}

async fn insert(mut app: App) -> Result<(), Failure> {
    let mut times = interval(INSERT_EVERY);
    times.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        times.tick().await;
        app.register_user().await?;
        times.tick().await;
        app.upload_file().await?;
    }
}

async fn summary(stage: &mut Stage) -> Result<String, Failure> {
    stage.stop_daemon().await?;
    Ok(summary::told(&summary::lines(&stage.session().await?.client).await?))
}

fn welcome(stage: &Stage, screen: &Screen, session: &Session) -> String {
    let paint = screen.paint;
    let (major, minor) = (session.version / 10_000, session.version % 10_000);
    format!(
        "\
PostgreSQL {major}.{minor} runs in a temporary folder, and this process is its only daemon. Open it in another terminal:

    {psql}

and insert an event yourself; it shows up here at once:

    {insert}
    {select}

The app inserts an event every {every} ms. Two things fail on purpose: every third thumbnail at its first attempt, and
{broken} always. Ctrl-C ends the demo and removes everything.

",
        psql = paint.bold(&stage.psql_line()),
        insert = paint.bold(
            r#"INSERT INTO outbox.event (topic, payload) VALUES ('user.registered', '{"name": "Me"}') RETURNING id \gset"#
        ),
        select =
            paint.bold("SELECT handler, state, attempts, last_error, result FROM outbox.delivery WHERE event_id = :id;"),
        every = INSERT_EVERY.as_millis(),
        broken = super::app::BROKEN,
    )
}
