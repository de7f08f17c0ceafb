//! `outboxd demo`: PostgreSQL, an app, the daemon and its handlers in one process, gone without a trace at its end.
//!
//! `stage` is what the demo starts and removes; on it, `once` plays a fixed piece and checks it, and `live` plays until
//! somebody has seen enough. The app is an app like any other: its SQL lies here and not in the store.

mod app;
mod check;
mod command;
mod live;
mod ocr;
mod once;
mod order;
mod receiver;
mod screen;
mod service;
mod stage;
mod summary;
mod system;
mod teller;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use self::ocr::OcrDemo;
use self::order::OrderDemo;
use self::screen::Screen;
use self::stage::Stage;
use super::output::print;
use super::signals::Signals;
use super::{Failure, Global};

pub(super) use self::command::DemoCommand;
pub(super) use self::system::DemoDaemon;

/// Making a PostgreSQL takes a second or so; whoever waits for longer is told for what.
const PATIENCE: Duration = Duration::from_millis(300);

const HELP: &str = "\
It needs PostgreSQL's server programs (Debian and Ubuntu: apt-get install postgresql) and nothing else; root is not
needed. It makes a PostgreSQL server in a temporary folder, reachable through a socket in that folder only, and removes
it at the end. No other database is touched: --config and --database-url are refused, and what the environment says
about them is ignored.

Exit codes: 0; 1 if --once found something wrong; 69 if PostgreSQL is not installed.";

#[derive(Debug, Args)]
#[command(after_help = HELP, args_conflicts_with_subcommands = true)]
pub(super) struct Demo {
    #[command(subcommand)]
    system: Option<Larger>,
    /// Insert 60 events, wait for their deliveries, check that everything is as it should be, and end
    #[arg(long)]
    once: bool,
    /// Print what --once found as JSON
    #[arg(long, requires = "once")]
    json: bool,
}

/// A larger system, in which third parties misbehave.
#[derive(Debug, Subcommand)]
enum Larger {
    /// Orders: stock, payment, parcel, message; what fails is undone, and an audit proves it
    Order(OrderDemo),
    /// Documents: a slow text recognition that dies and comes back, and a search index that refuses some of them
    Ocr(OcrDemo),
}

impl Demo {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        refuse_flags(global)?;
        let stop = CancellationToken::new();
        let signals = Signals::listen()?;
        tokio::select! {
            result = self.play(&stop) => result,
            never = signals.cancel(&stop) => match never {},
        }
    }

    async fn play(self, stop: &CancellationToken) -> Result<(), Failure> {
        match self.system {
            Some(Larger::Order(order)) => return order.run(stop).await,
            Some(Larger::Ocr(ocr)) => return ocr.run(stop).await,
            None => {}
        }
        if !self.once {
            let screen = Screen::stdout();
            let result = live::run(&screen, stop).await;
            screen.finish().await;
            return result;
        }
        let report = once::run(stop, !self.json).await?;
        let text = if self.json { report.to_json()? } else { report.to_string() };
        print(&text)?;
        // Everything has been said.
        if report.ok() { Ok(()) } else { Err(Failure::new("")) }
    }
}

fn refuse_flags(global: &Global) -> Result<(), Failure> {
    // Who has OUTBOXD_CONFIG in the environment for other verbs need not take it out for this one.
    let inherited = std::env::var_os("OUTBOXD_CONFIG").map(PathBuf::from);
    let flag = match global {
        Global { database_url: Some(_), .. } => "--database-url",
        Global { config: Some(config), .. } if inherited.as_ref() != Some(config) => "--config",
        _ => return Ok(()),
    };
    Err(Failure::with_code(2, format!("the demo brings its own PostgreSQL and configuration; leave {flag} out")))
}

/// Starts everything. `None`: stopped before that was done, and removed. `patience` is called if it takes a while.
async fn start(stop: &CancellationToken, patience: impl Fn(&str)) -> Result<Option<Stage>, Failure> {
    let telling = async {
        tokio::time::sleep(PATIENCE).await;
        patience("starting a PostgreSQL of its own ...\n");
        std::future::pending().await
    };
    tokio::select! {
        stage = Stage::start() => stage.map(Some),
        () = stop.cancelled() => Ok(None),
        never = telling => never,
    }
}
