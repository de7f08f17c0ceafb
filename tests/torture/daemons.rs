//! Two daemons, each behind a network of its own, and somebody who starts them again.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::arguments::Plan;
use crate::ledger::Ledger;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::sink::Sinks;

/// A handler, and what the comparison at the end must know of it.
pub(crate) struct Handler {
    pub(crate) name: &'static str,
    /// Its topics begin so.
    pub(crate) topics: &'static [&'static str],
    pub(crate) kind: Kind,
    pub(crate) max_attempts: u32,
    /// The order per key is promised.
    pub(crate) ordered: bool,
    /// So many attempts of a key run at the same time.
    pub(crate) per_key: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Http { moody: bool },
    Sql,
    Command,
}

const EVERYTHING_ENDS: u32 = 1000;
const CALM: Kind = Kind::Http { moody: false };

pub(crate) const HANDLERS: [Handler; 8] = [
    handler("sink", &["load"], Kind::Http { moody: true }, EVERYTHING_ENDS),
    Handler { ordered: true, ..handler("orderly", &["load"], Kind::Http { moody: true }, EVERYTHING_ENDS) },
    // One, so that a second one shows soon.
    Handler { per_key: Some(1), ..handler("fair", &["load"], Kind::Http { moody: true }, EVERYTHING_ENDS) },
    handler("effect", &["load"], Kind::Sql, EVERYTHING_ENDS),
    // Poison is dead after so many; nothing else may be.
    handler("picky", &["picky"], CALM, 8),
    handler("audit", &["picky", "probe"], CALM, EVERYTHING_ENDS),
    handler("probe", &["probe"], CALM, EVERYTHING_ENDS),
    handler("program", &["program"], Kind::Command, EVERYTHING_ENDS),
];

const fn handler(name: &'static str, topics: &'static [&'static str], kind: Kind, max_attempts: u32) -> Handler {
    Handler { name, topics, kind, max_attempts, ordered: false, per_key: None }
}

impl Handler {
    pub(crate) fn wants(&self, topic: &str) -> bool {
        topic.split('.').next().is_some_and(|first| self.topics.contains(&first))
    }

    fn config(&self, port: u16, daemon: &str, folder: &Path) -> String {
        let Self { name, topics, kind, max_attempts, ordered, per_key } = self;
        let per_key = per_key.map(|most| format!("concurrency_per_key = {most}\n")).unwrap_or_default();
        // Where much is poison, a breaker would take it for an outage.
        let breaker = if *max_attempts < EVERYTHING_ENDS { "off" } else { "on" };
        let topics: Vec<String> = topics.iter().map(|word| format!("{word}.#")).collect();
        let calls = match kind {
            Kind::Http { .. } => {
                format!(
                    "http = {{ url = \"http://127.0.0.1:{port}/\", headers = {{ Torture-Daemon = \"{daemon}\" }} }}"
                )
            }
            Kind::Sql => "sql = \"torture.effect\"".to_owned(),
            Kind::Command => {
                let receipts = folder.join("program");
                format!(
                    "command = [\"/bin/sh\", \"-c\", '''printf '%s %s %s\\n' $OUTBOX_EVENT_ID $OUTBOX_ATTEMPT \"$(head -c 40)\" >> {}''']",
                    receipts.display()
                )
            }
        };
        format!(
            "[handler.{name}]\ntopics = {topics:?}\n{calls}\nconcurrency = 16\ntimeout = \"5s\"\nordered = {ordered}\nbreaker = \"{breaker}\"\n{per_key}\
             retry = {{ max_attempts = {max_attempts}, base = \"20ms\", max = \"400ms\" }}\n\n"
        )
    }
}

/// One daemon: a process, or the pause between two.
pub(crate) struct Daemon {
    name: char,
    pub(crate) proxy: Proxy,
    folder: PathBuf,
    binary: PathBuf,
    poll: String,
    ports: BTreeMap<&'static str, u16>,
    state: Mutex<State>,
    ledger: Ledger,
}

#[derive(Default)]
struct State {
    pid: Option<Pid>,
    starts: u32,
    /// Whether it is started again when it ends.
    wanted: bool,
    samples: Vec<Sample>,
}

/// Ends a daemon whose harness was killed: without a test there is nobody to stop it.
fn guard(daemon: &Child) -> Child {
    let pid = daemon.id().expect("nobody has waited for it").to_string();
    // What it reads from ends with the harness.
    let script = "read -r nothing; kill -9 \"$0\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, &pid]).stdin(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

/// What a process uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) start: u32,
    pub(crate) at: Duration,
    pub(crate) kibibytes: u64,
    pub(crate) descriptors: usize,
}

impl Daemon {
    pub(crate) async fn new(name: char, plan: &Plan, server: &Server, sinks: &Sinks, ledger: &Ledger) -> Arc<Self> {
        let folder = ledger.path().parent().unwrap().to_owned();
        Arc::new(Self {
            name,
            proxy: Proxy::start(server.target()).await,
            folder,
            binary: plan.binary.clone(),
            poll: plan.poll.clone(),
            ports: sinks.iter().map(|(handler, sink)| (*handler, sink.port)).collect(),
            state: Mutex::new(State { wanted: true, ..State::default() }),
            ledger: ledger.clone(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it leads, or believes so: only a leader listens.
    pub(crate) fn leads(&self) -> bool {
        self.proxy.connections("bell") > 0
    }

    /// Runs it, again and again, as systemd would.
    pub(crate) fn supervise(self: &Arc<Self>) -> AbortOnDropHandle<()> {
        let daemon = Arc::clone(self);
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                if daemon.state().wanted {
                    let mut child = daemon.start();
                    let mut guard = guard(&child);
                    let status = child.wait().await.unwrap();
                    guard.kill().await.unwrap();
                    daemon.state().pid = None;
                    daemon.ledger.append(format!(
                        "{} ended {} {status}\n",
                        daemon.ledger.now().as_micros(),
                        daemon.name
                    ));
                    // 69: PostgreSQL was away at the start. Everything else but a signal and the orderly end is a fault.
                    if !matches!(status.code(), None | Some(0 | 69)) {
                        daemon.ledger.violation(format_args!("daemon {} ended with {status}", daemon.name));
                    }
                }
                sleep(Duration::from_millis(300)).await;
            }
        }))
    }

    fn start(&self) -> Child {
        let mut state = self.state();
        state.starts += 1;
        let name = format!("{}{}", self.name, state.starts);
        let port = |handler: &Handler| self.ports.get(handler.name).copied().unwrap_or_default();
        let handlers = HANDLERS.iter().map(|handler| handler.config(port(handler), &name, &self.folder));
        let poll = &self.poll;
        let head = format!(
            "[daemon]\npoll_interval = \"{poll}\"\ndrain_timeout = \"6s\"\npool_size = 8\nlisten = \"off\"\n\n"
        );
        let config = self.folder.join(format!("{}.toml", self.name));
        std::fs::write(&config, head + &handlers.collect::<String>()).unwrap();
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let child = Command::new(&self.binary)
            .args(["run", "--log-format", "json", "--config"])
            .arg(&config)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("DATABASE_URL", self.proxy.url("outboxd", "torture"))
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.binary.display()));
        state.pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        child
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.state().pid {
            // It may just have ended.
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it and keeps it so for a while.
    pub(crate) async fn end(&self, signal: Signal, pause: Duration) {
        self.state().wanted = false;
        self.signal(signal);
        sleep(pause).await;
        // One that was also paused must not keep the signal for later.
        self.signal(Signal::CONT);
        self.state().wanted = true;
    }

    /// Ends it for good, in order; kills it when that takes too long.
    pub(crate) async fn stop(&self) {
        self.state().wanted = false;
        self.signal(Signal::TERM);
        for _ in 0..300 {
            if self.state().pid.is_none() {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.ledger.violation(format_args!("I11: daemon {} did not end within 15 s of SIGTERM", self.name));
        self.signal(Signal::KILL);
    }

    /// Takes note of what the process uses now.
    pub(crate) fn sample(&self) {
        let mut state = self.state();
        let Some(pid) = state.pid else { return };
        let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        let (Some(kibibytes), Ok(open)) =
            (resident.and_then(|number| number.parse().ok()), std::fs::read_dir(folder.join("fd")))
        else {
            return;
        };
        let sample = Sample { start: state.starts, at: self.ledger.now(), kibibytes, descriptors: open.count() };
        state.samples.push(sample);
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.state().samples.clone()
    }

    pub(crate) fn name(&self) -> char {
        self.name
    }
}
