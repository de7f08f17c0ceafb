//! What was asked for: by a person, by the self-test, or by `cargo test`, which hands every test binary the same words.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use crate::nemesis::Kind;

/// Without arguments: a smoke of about a minute, with the drain at its end.
const SMOKE: Duration = Duration::from_secs(42);

#[derive(Debug, Parser)]
#[command(name = "torture", about = "outboxd under load and under faults, with a ledger that is compared at the end")]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line do not exclude each other")]
pub(crate) struct Arguments {
    /// Chooses the faults and the workload; their times are the machine's. Without it, the day does
    #[arg(long)]
    seed: Option<u64>,
    /// How long, with faults
    #[arg(long, conflicts_with = "seconds")]
    minutes: Option<u64>,
    /// The same, in seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// So many rounds, each of a calm and a storm
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of every round without faults
    #[arg(long)]
    calm: Option<u64>,
    /// Seconds of every round with faults
    #[arg(long)]
    storm: Option<u64>,
    /// No faults and no handler that fails: then nothing runs twice
    #[arg(long)]
    no_faults: bool,
    /// At least so many events, however long they take
    #[arg(long)]
    events: Option<u64>,
    /// Events per second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Seconds between two faults on average. Without it: 5, and 20 in runs of five minutes and more
    #[arg(long)]
    mean: Option<u64>,
    /// Only these faults
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Kind>,
    /// The daemons' poll_interval
    #[arg(long, default_value = "20s")]
    poll: String,
    /// Seconds that an event may wait in a calm: on a busy machine, and less than the poll, which must not be needed
    #[arg(long, default_value_t = 10)]
    patience: u64,
    /// Another daemon than the one that was built with this test
    #[arg(long, default_value = env!("CARGO_BIN_EXE_outboxd"))]
    binary: PathBuf,
    /// At the end the leader's listener goes deaf, and an event must arrive nevertheless
    #[arg(long)]
    deaf: bool,
    /// Builds the daemon with one known bug at a time, all of them or this one, and fails unless torture sees each
    #[arg(long, num_args = 0..=1, default_missing_value = "", value_name = "NAME")]
    pub(crate) seeded_bugs: Option<String>,

    // What libtest understands.
    /// Names of tests; this one is called `torture`
    #[arg(hide = true)]
    filters: Vec<String>,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    skip: Vec<String>,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, visible_alias = "no-capture", hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<String>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(long, hide = true)]
    color: Option<String>,
    #[arg(short = 'Z', hide = true)]
    unstable: Vec<String>,
}

/// What a run does.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) rounds: u32,
    /// Of every round: without faults, in which nothing may run twice and nothing may wait.
    pub(crate) calm: Duration,
    /// Of every round: with faults.
    pub(crate) storm: Duration,
    pub(crate) mean: Duration,
    pub(crate) faults: Vec<Kind>,
    pub(crate) events: u64,
    pub(crate) rate: u32,
    pub(crate) poll: String,
    pub(crate) patience: Duration,
    pub(crate) binary: PathBuf,
    pub(crate) deaf: bool,
}

impl Plan {
    pub(crate) fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Whether an attempt that succeeded may run again.
    pub(crate) fn may_repeat(&self) -> bool {
        self.faults.iter().any(|kind| kind.may_repeat())
    }

    /// The longest that it may take: everything twice, a drain before every calm, and the events at a tenth of their rate.
    pub(crate) fn longest(&self) -> Duration {
        let rounds = (self.calm + self.storm + Duration::from_mins(1)) * self.rounds * 2;
        rounds + Duration::from_secs(self.events * 10 / u64::from(self.rate)) + Duration::from_mins(6)
    }
}

impl Arguments {
    pub(crate) fn read() -> Self {
        let name = std::env::args().next().unwrap_or_default();
        // `cargo bench` adds a word of its own to all of them.
        let words = std::env::args().skip(1).filter(|word| word != "--bench");
        let matches = Self::command().get_matches_from([name].into_iter().chain(words));
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Whether the words meant for libtest ask for other tests, or only for their names.
    pub(crate) fn is_for_others(&self) -> bool {
        const NAME: &str = "torture";
        let names = |filter: &String| if self.exact { filter == NAME } else { NAME.contains(filter.as_str()) };
        let wanted = self.filters.is_empty() || self.filters.iter().any(names);
        if self.list {
            println!("{NAME}: test\n\n1 test, 0 benchmarks");
        }
        self.list || self.ignored || !wanted || self.skip.iter().any(names)
    }

    pub(crate) fn plan(&self) -> Plan {
        let asked = self.minutes.map(Duration::from_mins).or(self.seconds.map(Duration::from_secs));
        let whole = asked.unwrap_or(if self.no_faults { Duration::ZERO } else { SMOKE });
        let is_long = whole >= Duration::from_mins(5);
        let round = if is_long { Duration::from_mins(2) } else { whole };
        let calm = Duration::from_secs(self.calm.unwrap_or(if is_long { 20 } else { 12 }));
        let storm = self.storm.map_or(round.saturating_sub(calm), Duration::from_secs);
        let rounds = self.rounds.unwrap_or(u32::try_from(whole.as_secs().div_ceil(round.as_secs().max(1))).unwrap());
        let faults = if self.no_faults { Vec::new() } else { Kind::chosen(&self.faults) };
        Plan {
            seed: self.seed.unwrap_or_else(today),
            rounds,
            calm,
            storm,
            mean: Duration::from_secs(self.mean.unwrap_or(if is_long { 20 } else { 5 })),
            faults,
            events: self.events.unwrap_or(if rounds == 0 { 20_000 } else { 0 }),
            rate: self.rate.max(1),
            poll: self.poll.clone(),
            patience: Duration::from_secs(self.patience),
            binary: self.binary.clone(),
            deaf: self.deaf,
        }
    }
}

/// The days since 1970: every day another run, and all runs of a day are the same.
fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400
}
