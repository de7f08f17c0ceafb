//! The command line: the grammar here, one file per verb. Verbs call the same store as everybody else.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage, 69 database unreachable, 70 internal error, 78 bad configuration or
//! a database that is not set up (systemd does not restart after it).

mod bench;
mod cancel;
mod check;
mod dead;
mod demo;
mod discard;
mod doctor;
mod events;
mod failure;
mod findings;
mod forget;
mod limit;
mod manual;
mod migrate;
mod output;
mod pause;
mod redrive;
mod replay;
mod retry;
mod run;
mod show;
mod signals;
mod status;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::failure::Failure;
use crate::config::Config;
use crate::postgres::{SchemaStatus, Target, migrate as schema};
use crate::store::Store;

/// Where the configuration is when nobody says.
const DEFAULT_CONFIG: &str = "/etc/outboxd/outboxd.toml";

/// A daemon beside PostgreSQL: an inserted row reaches its handlers, and its state comes back.
#[derive(Debug, Parser)]
#[command(name = "outboxd", version)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Global {
    /// The configuration file [default: /etc/outboxd/outboxd.toml, if it exists]
    #[arg(long, short, global = true, display_order = 100, env = "OUTBOXD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where PostgreSQL is [default: OUTBOXD_DATABASE_URL, DATABASE_URL, the configuration, PG*, the local socket]
    #[arg(long, global = true, display_order = 101, value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon: dispatch events, or stand by for another daemon that does
    ///
    /// SIGTERM and SIGINT drain and stop; a second one stops at once. SIGHUP reads the configuration again.
    Run(run::Run),
    /// Watch it work: a PostgreSQL of its own, an app, events, handlers, retries; nothing is left behind
    Demo(demo::Demo),
    /// What the demo's command handlers run
    #[command(hide = true)]
    DemoCommand(demo::DemoCommand),
    /// The daemon of a larger demo
    #[command(hide = true)]
    DemoDaemon(demo::DemoDaemon),
    /// Make the schema `outbox`, or bring it up to date
    Migrate(migrate::Migrate),
    /// Check the configuration and the database, and say what is wrong
    Check(check::Check),
    /// Find out what is wrong now, why, and what to do
    Doctor(doctor::Doctor),
    /// Show what is not finished, per handler, and who leads
    Status(status::Status),
    /// List the newest events
    Events(events::Events),
    /// Show the whole story of one event
    Show(show::Show),
    /// Run dead deliveries of an event again now
    Retry(retry::Retry),
    /// Run dead deliveries that fit again, all at once or so many a second
    Redrive(redrive::Redrive),
    /// Hand events that are in the log to a handler again
    Replay(replay::Replay),
    /// Give dead deliveries up for good: one, or all that fit
    Discard(discard::Discard),
    /// Cancel deliveries of an event that have not ended
    Cancel(cancel::Cancel),
    /// Begin nothing more for a handler; what comes meanwhile waits
    Pause(pause::Pause),
    /// End a handler's pause
    Resume(pause::Resume),
    /// Let other limits count for a handler than the configured ones
    Limit(limit::Limit),
    /// Measure how fast it is here, beside what is possible here
    Bench(bench::Bench),
    /// The processes of the bench
    #[command(hide = true)]
    BenchPart(bench::BenchPart),
    /// Forget a handler that left the configuration
    Forget(forget::Forget),
    /// Print what a shell needs to complete commands
    Completions(manual::Completions),
    /// Print the manual, as a man page
    Man(manual::Man),
}

impl Cli {
    /// Runs the verb and says how it ended.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return Failure::internal(format!("the runtime could not be started: {error}")).tell(),
        };
        let Self { global, verb } = self;
        let result = runtime.block_on(async {
            match verb {
                Verb::Bench(bench) => bench.run(&global).await,
                Verb::BenchPart(part) => part.run(&global).await,
                Verb::Run(run) => run.run(&global).await,
                Verb::Demo(demo) => demo.run(&global).await,
                Verb::DemoCommand(command) => command.run(),
                Verb::DemoDaemon(daemon) => daemon.run(&global).await,
                Verb::Migrate(migrate) => migrate.run(&global).await,
                Verb::Check(check) => check.run(&global).await,
                Verb::Doctor(doctor) => doctor.run(&global).await,
                Verb::Status(status) => status.run(&global).await,
                Verb::Events(events) => events.run(&global).await,
                Verb::Show(show) => show.run(&global).await,
                Verb::Retry(retry) => retry.run(&global).await,
                Verb::Redrive(redrive) => redrive.run(&global).await,
                Verb::Replay(replay) => replay.run(&global).await,
                Verb::Discard(discard) => discard.run(&global).await,
                Verb::Cancel(cancel) => cancel.run(&global).await,
                Verb::Pause(pause) => pause.run(&global).await,
                Verb::Resume(resume) => resume.run(&global).await,
                Verb::Limit(limit) => limit.run(&global).await,
                Verb::Forget(forget) => forget.run(&global).await,
                Verb::Completions(completions) => completions.run(),
                Verb::Man(man) => man.run(),
            }
        });
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.tell(),
        }
    }
}

impl Global {
    /// The configuration file: the one that was named, or the default one if it exists.
    fn file(&self) -> Option<&Path> {
        self.config.as_deref().or_else(|| Some(Path::new(DEFAULT_CONFIG)).filter(|path| path.exists()))
    }

    /// The configuration, which must exist.
    fn load(&self) -> Result<Config, Failure> {
        let Some(path) = self.file() else {
            return Err(Failure::config(format!(
                "there is no configuration: {DEFAULT_CONFIG} does not exist and no --config was given"
            )));
        };
        Ok(Config::load(path)?)
    }

    /// Where PostgreSQL is. The configuration is asked only if nothing else says it.
    fn target(&self) -> Result<Target, Failure> {
        let env = |name: &str| std::env::var(name).ok();
        let told =
            self.database_url.is_some() || ["OUTBOXD_DATABASE_URL", "DATABASE_URL"].iter().any(|n| env(n).is_some());
        let file = if told || self.file().is_none() { None } else { self.load()?.daemon.database_url };
        Ok(Target::resolve(self.database_url.as_deref(), file.as_ref(), &env)?)
    }

    /// A session with a database whose schema is the one this binary knows.
    async fn store(&self) -> Result<Store, Failure> {
        let session = self.target()?.connect("command line").await?;
        match schema::status(&session.client).await? {
            SchemaStatus::Current => Ok(Store::new(session)),
            status => Err(Failure::config(status.to_string())),
        }
    }
}

/// Whether an operator names a handler that is there.
fn registered(known: &[(String, bool)], name: &str) -> Result<(), Failure> {
    if known.iter().any(|(known, _)| known == name) { Ok(()) } else { Err(Failure::no_handler(name, known)) }
}
