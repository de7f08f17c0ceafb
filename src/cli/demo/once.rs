//! `outboxd demo --once`: a fixed piece, checked at its end.

use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::super::Failure;
use super::super::output::print;
use super::app::App;
use super::check::{self, Check, Inserted, Left};
use super::stage::Stage;
use super::{start, summary};

const INSERTED: Inserted = Inserted { users: 40, files: 20 };
/// How long the deliveries may take; what has not ended then is told as wrong.
const DELIVERIES_MAX: Duration = Duration::from_secs(20);
/// How often it is asked whether they have ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    postgresql: String,
    events: usize,
    /// To make PostgreSQL and start the daemon.
    start_seconds: f64,
    /// From the first insert to the end of the last delivery.
    seconds: f64,
    handlers: Vec<summary::Line>,
    checks: Vec<Check>,
}

/// Plays it. Everything is removed when this returns, whatever it returns.
pub(super) async fn run(stop: &CancellationToken, tell: bool) -> Result<Report, Failure> {
    let began = Instant::now();
    let patience = |text: &str| {
        // A stdout that is closed shows again when the report is printed.
        let _ = tell.then(|| print(text));
    };
    let stopped = || Failure::new("stopped before it was finished");
    let mut stage = start(stop, patience).await?.ok_or_else(stopped)?;
    let start_seconds = began.elapsed().as_secs_f64();
    let report = tokio::select! {
        report = play(&mut stage, start_seconds) => report,
        () = stop.cancelled() => Err(stopped()),
    };
    let removed = stage.remove().await;
    let report = report?;
    removed?;
    Ok(report)
}

async fn play(stage: &mut Stage, start_seconds: f64) -> Result<Report, Failure> {
    let mut app = App(stage.session().await?);
    let began = Instant::now();
    for event in 0..INSERTED.users + INSERTED.files {
        if event % 3 == 2 {
            app.upload_file().await?;
        } else {
            app.register_user().await?;
        }
    }
    let App(session) = app;
    ended(&session.client, began + DELIVERIES_MAX).await?;
    let seconds = began.elapsed().as_secs_f64();
    // Whatever ran once too often has ended as well now.
    stage.stop_daemon().await?;
    let facts = check::facts(&session.client).await?;
    let left = Left { mails: &stage.receiver.mails(), folder: &stage.folder };
    Ok(Report {
        postgresql: format!("{}.{}", session.version / 10_000, session.version % 10_000),
        events: INSERTED.users + INSERTED.files,
        start_seconds,
        seconds,
        handlers: summary::lines(&session.client).await?,
        checks: check::checks(&facts, &left, &INSERTED),
    })
}

/// Waits until every delivery has ended, or until the deadline.
async fn ended(client: &Client, deadline: Instant) -> Result<(), Failure> {
    let count = client.prepare("SELECT count(*) FROM outbox.delivery WHERE state IN ('done', 'dead')").await?;
    let wanted = i64::try_from(INSERTED.deliveries()).unwrap_or(i64::MAX);
    while client.query_one(&count, &[]).await?.get::<_, i64>(0) < wanted && Instant::now() < deadline {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

impl Report {
    pub(super) fn ok(&self) -> bool {
        self.checks.iter().all(|check| check.wrong.is_empty())
    }

    pub(super) fn to_json(&self) -> Result<String, Failure> {
        #[derive(Serialize)]
        struct Judged<'a> {
            ok: bool,
            #[serde(flatten)]
            report: &'a Report,
        }
        let judged = Judged { ok: self.ok(), report: self };
        let text = serde_json::to_string_pretty(&judged).map_err(|error| Failure::internal(error.to_string()))?;
        Ok(text + "\n")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "PostgreSQL {} and the daemon were ready after {:.1} s; {} events and their deliveries took {:.1} s.\n",
            self.postgresql, self.start_seconds, self.events, self.seconds
        )?;
        writeln!(f, "{}", summary::told(&self.handlers))?;
        for Check { what, wrong } in &self.checks {
            writeln!(f, "{}  {what}", if wrong.is_empty() { "ok     " } else { "problem" })?;
            wrong.iter().try_for_each(|wrong| writeln!(f, "           {wrong}"))?;
        }
        f.write_char('\n')?;
        f.write_str(if self.ok() {
            "All is as it should be; nothing is left behind.\n"
        } else {
            "Not all is as it should be.\n"
        })
    }
}
