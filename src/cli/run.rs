//! `outboxd run`: the daemon.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

use super::{Failure, Global};
use crate::daemon::{Daemon, Reloader};
use crate::observe::{Observation, Observer};
use crate::systemd;

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Make or update the schema first
    #[arg(long)]
    migrate: bool,
    /// How log lines look: text and json go to stderr, journald to systemd's journal, with fields. RUST_LOG chooses which: "info" by
    /// default, "outboxd=debug" tells of every event
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
    Journald,
}

impl Run {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let config = global.load()?;
        log(self.log_format)?;
        let target = global.target()?;
        if self.migrate {
            crate::postgres::migrate::migrate(&target).await?;
        }
        let observer = Observer::default();
        let daemon = Daemon::builder().config(config).target(target).observer(observer.clone()).build()?;
        let stop = CancellationToken::new();
        tokio::select! {
            result = daemon_with_reload(daemon, global, &observer, &stop) => result,
            failure = signals(&stop) => Err(failure),
        }
    }
}

async fn daemon_with_reload(
    daemon: Daemon,
    global: &Global,
    observer: &Observer,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let reloader = daemon.reloader();
    tokio::select! {
        result = daemon.run(stop.clone()) => Ok(result?),
        failure = reloads(global, observer, &reloader) => Err(failure),
    }
}

/// SIGHUP: the configuration is read again, as a whole or not at all.
async fn reloads(global: &Global, observer: &Observer, reloader: &Reloader) -> Failure {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => return no_signals(&error),
    };
    while hangups.recv().await.is_some() {
        systemd::reloading();
        match global.load() {
            // A daemon that has ended needs no configuration.
            Ok(config) => drop(reloader.reload(config)),
            Err(failure) => observer.tell(&Observation::ReloadRefused { error: failure.to_string() }),
        }
        systemd::reloaded();
    }
    std::future::pending().await
}

/// The first SIGTERM or SIGINT cancels `stop`; the second ends the wait.
async fn signals(stop: &CancellationToken) -> Failure {
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => return no_signals(&error),
    };
    for first in [true, false] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if first {
            systemd::stopping();
            stop.cancel();
        }
    }
    Failure::new("stopped at once by a second signal; attempts that ran will run again")
}

fn no_signals(error: &std::io::Error) -> Failure {
    Failure::internal(format!("signals cannot be received: {error}"))
}

fn log(format: LogFormat) -> Result<(), Failure> {
    let stderr = || fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match format {
        LogFormat::Text => stderr().with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => stderr().json().flatten_event(true).boxed(),
        LogFormat::Journald => {
            let journal = tracing_journald::layer().map_err(|error| {
                Failure::config(format!("--log-format journald: there is no journal here: {error}"))
            })?;
            journal.with_field_prefix(Some("OUTBOXD".to_owned())).with_syslog_identifier("outboxd".to_owned()).boxed()
        }
    };
    let result = tracing_subscriber::registry().with(lines.with_filter(filter())).try_init();
    result.map_err(|error| Failure::internal(format!("logging could not be set up: {error}")))
}

/// Which lines there are. What PostgreSQL is asked is payloads too, so it is told of only to who names the client that asks.
fn filter() -> EnvFilter {
    const STATEMENTS: &str = "tokio_postgres";
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    // refinery tells of every migration it has not to run.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,refinery_core=warn"));
    match format!("{STATEMENTS}=info").parse() {
        Ok(quiet) if !asked.contains(STATEMENTS) => filter.add_directive(quiet),
        _ => filter,
    }
}
