//! `outboxd bench`: how fast it is here, each figure beside a floor measured in the same run.
//!
//! `stand` is the database, `part` the processes (the daemon, the floors, a web service), `report` the figures; each scenario
//! is a function from the stand to figures.

mod clock;
mod drain;
mod enqueue;
mod floor;
mod http;
mod idle;
mod latency;
mod load;
mod part;
mod report;
mod restart;
mod sink;
mod stand;

use std::fmt::{self, Display};
use std::io::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};

use self::report::{Figure, Run};
use self::stand::Stand;
use super::output::{print, print_json};
use super::signals::Signals;
use super::{Failure, Global};

pub(super) use self::part::BenchPart;

const HELP: &str = "\
Without --database-url it makes a PostgreSQL server of its own in a temporary folder and removes it at the end. A database that is
named must not have a schema `outbox`: the bench makes it and drops it, for every scenario anew.

The daemon is a process of its own, as it would be in service, and its handlers in Rust do nothing. A floor is what the same work
costs without the daemon, measured in the same run. Ratios within one run say more than figures: the server, the daemon and the
load share this machine.

Exit codes: 0; 1 if something could not be measured; 2 for idle with --database-url, because it reads the server's log; 69 if there is no
PostgreSQL; 78 if the database has a schema outbox.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Bench {
    /// What to measure
    #[arg(value_enum, default_values_t = QUICK)]
    scenarios: Vec<Scenario>,
    /// How often each is measured, in turn; the table has medians and ranges
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Events of a scenario that counts events, instead of its own number
    #[arg(long, value_parser = clap::value_parser!(u32).range(100..=20_000_000))]
    events: Option<u32>,
    /// Seconds of a scenario that lasts a time, instead of its own
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: Option<u32>,
    /// Print JSON: a list with every run
    #[arg(long)]
    json: bool,
}

/// What takes a few minutes in all.
const QUICK: [Scenario; 7] = [
    Scenario::Drain,
    Scenario::Fanout,
    Scenario::Flow,
    Scenario::Enqueue,
    Scenario::Latency,
    Scenario::Steady,
    Scenario::Http,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// 300,000 events are there: one handler that does nothing
    Drain,
    /// 100,000 events are there: four such handlers, each for all of them
    Fanout,
    /// 50,000 events are there: a flow of five steps that do nothing, and five handlers that do nothing
    Flow,
    /// 16 producers commit for 60 s, and 64: with the trigger and without
    Enqueue,
    /// 1,000 events, one at a time
    Latency,
    /// 500 events a second for 20 s, and 2,000: a handler that takes 5 ms
    Steady,
    /// 2,000 events a second for 300 s, while a transaction holds a snapshot
    HeldXmin,
    /// 20,000 events are there: an HTTP handler, and a web service beside it
    Http,
    /// 10,000,000 events are there, and a tenth of them
    Backlog,
    /// Nothing to do for 120 s, as often as house is kept, after 70 s
    Idle,
    /// Five starts where 10,000,000 deliveries are done, 1,000,000 have a row that waits, and 1,000,000 events are new
    Restart,
}

/// One thing that is measured: a scenario and its size.
struct Case {
    scenario: Scenario,
    size: Size,
}

#[derive(Clone, Copy)]
enum Size {
    Events(u32),
    Seconds(u32),
    Producers(u32, u32),
    /// So many a second, for so many seconds, after so many lone ones.
    Rate(u32, u32, u32),
}

impl Bench {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut signals = Signals::listen()?;
        tell("making a database ...");
        let stand = Stand::open(global.database_url.as_deref()).await?;
        let measured = tokio::select! {
            runs = self.measure(&stand) => runs,
            () = signals.one() => Err(Failure::new("stopped")),
        };
        let closed = stand.close().await;
        let runs = measured?;
        closed?;
        if self.json { print_json(&runs) } else { print(&report::table_of(&runs)) }
    }

    async fn measure(&self, stand: &Stand) -> Result<Vec<Run>, Failure> {
        let cases: Vec<Case> =
            self.scenarios.iter().flat_map(|scenario| scenario.cases(self.events, self.seconds)).collect();
        let mut runs = Vec::new();
        for run in 1..=self.runs {
            for case in &cases {
                let (scenario, size) = (case.scenario.name(), case.size.to_string());
                tell(&format!("{scenario}, {size}, run {run} of {} ...", self.runs));
                runs.push(Run { scenario, size, number: run, figures: case.play(stand).await? });
            }
        }
        Ok(runs)
    }
}

impl Case {
    async fn play(&self, stand: &Stand) -> Result<Vec<Figure>, Failure> {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        match (self.scenario, self.size) {
            (Scenario::Drain, Size::Events(events)) => drain::run(stand, events, 1).await,
            (Scenario::Fanout, Size::Events(events)) => drain::run(stand, events, 4).await,
            (Scenario::Flow, Size::Events(events)) => drain::flow(stand, events).await,
            (Scenario::Backlog, Size::Events(events)) => drain::backlog(stand, events).await,
            (Scenario::Latency, Size::Events(events)) => latency::idle(stand, events).await,
            (Scenario::Http, Size::Events(events)) => http::run(stand, events).await,
            (Scenario::Restart, Size::Events(events)) => restart::run(stand, events).await,
            (Scenario::Enqueue, Size::Producers(producers, time)) => {
                enqueue::run(stand, producers, seconds(time)).await
            }
            (Scenario::Steady, Size::Rate(rate, time, lone)) => latency::steady(stand, lone, rate, seconds(time)).await,
            (Scenario::HeldXmin, Size::Rate(rate, time, _)) => latency::held_xmin(stand, rate, seconds(time)).await,
            (Scenario::Idle, Size::Seconds(time)) => idle::run(stand, seconds(time)).await,
            (scenario, size) => Err(Failure::internal(format!("{scenario} has no size of {size}"))),
        }
    }
}

impl Scenario {
    fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Fanout => "fanout",
            Self::Flow => "flow",
            Self::Enqueue => "enqueue",
            Self::Latency => "latency",
            Self::Steady => "steady",
            Self::HeldXmin => "held-xmin",
            Self::Http => "http",
            Self::Backlog => "backlog",
            Self::Idle => "idle",
            Self::Restart => "restart",
        }
    }

    /// What is measured for it.
    fn cases(self, events: Option<u32>, seconds: Option<u32>) -> Vec<Case> {
        let lone = events.unwrap_or(500);
        let events = |own| Size::Events(events.unwrap_or(own));
        let seconds = |own| seconds.unwrap_or(own);
        let sizes = match self {
            Self::Drain => vec![events(300_000)],
            Self::Fanout => vec![events(100_000)],
            Self::Flow => vec![events(50_000)],
            Self::Enqueue => vec![Size::Producers(16, seconds(60)), Size::Producers(64, seconds(60))],
            Self::Latency => vec![events(1000)],
            Self::Steady => vec![Size::Rate(500, seconds(20), lone), Size::Rate(2000, seconds(20), lone)],
            Self::HeldXmin => vec![Size::Rate(2000, seconds(300), 0)],
            Self::Http => vec![events(20_000)],
            Self::Backlog | Self::Restart => vec![events(10_000_000)],
            Self::Idle => vec![Size::Seconds(seconds(120))],
        };
        sizes.into_iter().map(|size| Case { scenario: self, size }).collect()
    }
}

impl Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events(events) => write!(f, "{events} events"),
            Self::Seconds(seconds) => write!(f, "{seconds} s"),
            Self::Producers(producers, seconds) => write!(f, "{producers} producers, {seconds} s"),
            Self::Rate(rate, seconds, _) => write!(f, "{rate}/s, {seconds} s"),
        }
    }
}

/// Says what is going on, beside the report.
fn tell(text: &str) {
    // Who does not see it loses nothing.
    let _ = writeln!(std::io::stderr(), "{text}");
}
