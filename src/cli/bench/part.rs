//! The processes of a bench: this program again, so that the memory and the CPU time of each can be told apart.
//!
//! A part says what it saw on stdout, a line each, with times of [`clock`], and ends when its stdin does: so it never outlives
//! the bench.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

use super::super::{Failure, Global};
use super::stand::Stand;
use super::{clock, floor, sink};
use crate::config::{Config, DeliveryConfig, Start};
use crate::daemon::{Daemon, Flow};
use crate::event::Attempt;
use crate::observe::{Observation, Observer};

/// Attempts at the same time of a handler that does nothing, or only waits.
const CONCURRENCY: usize = 500;
/// Requests at the same time.
const REQUESTS_TOGETHER: usize = 50;
/// How long a part may take to say something that it must say. The longest is what the most events take.
const SAYS_MAX: Duration = Duration::from_mins(20);
/// How long a part may take to end.
const ENDS_MAX: Duration = Duration::from_secs(40);

#[derive(Debug, Args)]
pub(in crate::cli) struct BenchPart {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Clone, Subcommand)]
pub(super) enum Role {
    /// The daemon, with handlers in Rust
    Daemon {
        #[arg(long, default_value_t = 1)]
        handlers: u32,
        /// How long an attempt takes, in milliseconds
        #[arg(long, default_value_t = 0)]
        takes: u64,
        /// Whether it tells of every attempt that begins
        #[arg(long)]
        tells: bool,
    },
    /// The daemon, with a flow of steps in Rust that do nothing, one after the other
    Flow {
        #[arg(long)]
        steps: u32,
    },
    /// The daemon, with an HTTP handler
    Posts {
        #[arg(long)]
        url: String,
    },
    /// What `Daemon` does to PostgreSQL, and nothing between
    DrainFloor {
        #[arg(long)]
        handlers: u32,
    },
    /// Listens, and fetches what is new when it hears something
    ListenFloor,
    /// What `Posts` sends, and no PostgreSQL
    PostFloor {
        #[arg(long)]
        url: String,
        #[arg(long)]
        requests: u32,
    },
    /// A web service that takes everything
    Sink,
}

impl BenchPart {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Failure> {
        let (stop, rings) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        tokio::select! {
            result = self.role.play(global, &stop, &rings) => result,
            never = obey(&stop, &rings) => match never {},
        }
    }
}

/// Says what is asked for on stdin; its end cancels `stop`.
async fn obey(stop: &CancellationToken, rings: &AtomicU64) -> Infallible {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    // An error is an end as well.
    while let Ok(Some(_)) = lines.next_line().await {
        say(&format!("rings {}", rings.load(Ordering::Relaxed)));
    }
    stop.cancel();
    std::future::pending().await
}

impl Role {
    async fn play(self, global: &Global, stop: &CancellationToken, rings: &Arc<AtomicU64>) -> Result<(), Failure> {
        match self {
            Self::Daemon { handlers, takes, tells } => {
                let takes = Duration::from_millis(takes);
                let mut builder = Daemon::builder();
                let begun = Arc::new(AtomicU64::new(0));
                for n in 1..=handlers {
                    let mut delivery = DeliveryConfig::new(vec![every_event()?]);
                    delivery.concurrency = CONCURRENCY;
                    delivery.start = Start::Beginning;
                    let begun = Arc::clone(&begun);
                    builder = builder.handler_with(format!("bench_{n}"), delivery, move |attempt: Attempt| {
                        if tells {
                            say(&format!("{} {}", attempt.event.id, clock::now()));
                        } else if begun.fetch_add(1, Ordering::Relaxed) == 0 {
                            say(&format!("first {}", clock::now()));
                        }
                        async move {
                            if !takes.is_zero() {
                                tokio::time::sleep(takes).await;
                            }
                        }
                    });
                }
                let daemon = builder.target(global.target()?).observer(observer(rings)).build()?;
                Ok(daemon.run(stop.clone()).await?)
            }
            Self::Flow { steps } => {
                let builder = Daemon::builder().flow(chain(steps)).target(global.target()?);
                Ok(builder.observer(observer(rings)).build()?.run(stop.clone()).await?)
            }
            Self::Posts { url } => {
                let builder = Daemon::builder().config(posting(&url)?).target(global.target()?);
                Ok(builder.observer(observer(rings)).build()?.run(stop.clone()).await?)
            }
            Self::DrainFloor { handlers } => floor::drain(&global.target()?, handlers, stop).await,
            Self::ListenFloor => floor::listen(&global.target()?, stop).await,
            Self::PostFloor { url, requests } => floor::post(&url, requests, REQUESTS_TOGETHER).await,
            Self::Sink => sink::run(stop).await,
        }
    }
}

/// A flow of so many steps that do nothing, one after the other. The first one says when it is called for the first time.
fn chain(steps: u32) -> Flow {
    let (begun, mut flow) = (AtomicU64::new(0), Flow::new("bench", ["bench.event"]).start(Start::Beginning));
    let mut delivery = DeliveryConfig::new(Vec::new());
    delivery.concurrency = CONCURRENCY;
    flow = flow.step_with("step_1", &[], delivery.clone(), move |_: Attempt| {
        if begun.fetch_add(1, Ordering::Relaxed) == 0 {
            say(&format!("first {}", clock::now()));
        }
        std::future::ready(())
    });
    for n in 2..=steps {
        let before = format!("step_{}", n - 1);
        flow = flow.step_with(&format!("step_{n}"), &[&before], delivery.clone(), async |_: Attempt| ());
    }
    flow
}

/// The configuration of a daemon that posts every event to this URL.
pub(super) fn posting(url: &str) -> Result<Config, Failure> {
    let url = toml::Value::from(url);
    let text = format!(
        "[daemon]\nlisten = \"off\"\n[handler.bench]\ntopics = [\"bench.event\"]\nhttp = {{ url = {url} }}\n\
         concurrency = {REQUESTS_TOGETHER}\nstart = \"beginning\"\n"
    );
    Config::parse(&text, "bench", &|_| None).map_err(|errors| Failure::internal(errors.to_string()))
}

fn every_event() -> Result<crate::topic::Pattern, Failure> {
    "bench.event".parse().map_err(|error: crate::topic::PatternError| Failure::internal(error.to_string()))
}

/// Says when it leads, and counts the rings it hears.
fn observer(rings: &Arc<AtomicU64>) -> Observer {
    let rings = Arc::clone(rings);
    Observer::watching(move |observation| match observation {
        Observation::Leading => say("ready"),
        Observation::Woken => drop(rings.fetch_add(1, Ordering::Relaxed)),
        _ => {}
    })
}

/// Says one line to the bench. If that has gone, its end comes by stdin.
pub(super) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A part that runs, as the bench sees it.
pub(super) struct Part {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    pid: u32,
}

/// What a part has used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    pub(super) cpu_seconds: f64,
    pub(super) peak_bytes: u64,
}

impl Part {
    pub(super) fn start(stand: &Stand, role: &Role) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::internal(format!("this program cannot be started again: {error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .arg("bench-part")
            .args(role.args())
            // Not as an argument, which anybody on this machine may read.
            .env("OUTBOXD_DATABASE_URL", stand.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let gone = || Failure::internal("a part of the bench ended at once");
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).ok_or_else(gone)?;
        let pid = child.id().ok_or_else(gone)?;
        Ok(Self { child, stdin, lines: BufReader::new(stdout).lines(), pid })
    }

    /// The next line.
    pub(super) async fn says(&mut self) -> Result<String, Failure> {
        match tokio::time::timeout(SAYS_MAX, self.lines.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(_) => Err(Failure::new("a part of the bench ended before its time")),
            Err(_) => Err(Failure::new(format!("a part of the bench said nothing for {} s", SAYS_MAX.as_secs()))),
        }
    }

    /// Waits for a line that begins with this word; returns the rest of it. Other lines are passed over.
    pub(super) async fn says_that(&mut self, word: &str) -> Result<String, Failure> {
        loop {
            let line = self.says().await?;
            let (first, rest) = line.split_once(' ').unwrap_or((&line, ""));
            if first == word {
                return Ok(rest.to_owned());
            }
        }
    }

    /// The same where the rest is a time.
    pub(super) async fn says_when(&mut self, word: &str) -> Result<i64, Failure> {
        let rest = self.says_that(word).await?;
        rest.parse().map_err(|_| Failure::internal(format!("a part of the bench said {rest:?} for a time")))
    }

    /// How many notifications a daemon has heard.
    pub(super) async fn rings(&mut self) -> Result<f64, Failure> {
        let asked = self.stdin.write_all(b"rings\n").await;
        asked.map_err(|error| Failure::new(format!("a part of the bench cannot be asked: {error}")))?;
        let rings = self.says_that("rings").await?;
        rings.parse().map_err(|_| Failure::internal(format!("a part of the bench has heard {rings:?} rings")))
    }

    pub(super) fn used(&self) -> Result<Used, Failure> {
        let used = clock::cpu(self.pid).zip(clock::peak_memory(self.pid));
        let (cpu_seconds, peak_bytes) = used.ok_or_else(|| Failure::new("a part of the bench has gone"))?;
        Ok(Used { cpu_seconds, peak_bytes })
    }

    /// Ends it as a service manager would, and waits for that.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        drop(self.stdin);
        match tokio::time::timeout(ENDS_MAX, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(status) => Err(Failure::new(format!("a part of the bench ended badly: {status:?}"))),
            Err(_) => Err(Failure::new(format!("a part of the bench did not end within {} s", ENDS_MAX.as_secs()))),
        }
    }
}

impl Role {
    fn args(&self) -> Vec<String> {
        let args: &[&dyn std::fmt::Display] = match self {
            Self::Flow { steps } => &[&"flow", &"--steps", steps],
            Self::Daemon { handlers, takes, tells: false } => &[&"daemon", &"--handlers", handlers, &"--takes", takes],
            Self::Daemon { handlers, takes, tells: true } => {
                &[&"daemon", &"--handlers", handlers, &"--takes", takes, &"--tells"]
            }
            Self::Posts { url } => &[&"posts", &"--url", url],
            Self::DrainFloor { handlers } => &[&"drain-floor", &"--handlers", handlers],
            Self::ListenFloor => &[&"listen-floor"],
            Self::PostFloor { url, requests } => &[&"post-floor", &"--url", url, &"--requests", requests],
            Self::Sink => &[&"sink"],
        };
        args.iter().map(ToString::to_string).collect()
    }
}

/// Where a sink listens.
pub(super) async fn sink(stand: &Stand) -> Result<(Part, SocketAddr), Failure> {
    let mut part = Part::start(stand, &Role::Sink)?;
    let address = part.says_that("ready").await?;
    let address = address.parse().map_err(|_| Failure::internal(format!("the sink listens on {address:?}")))?;
    Ok((part, address))
}
