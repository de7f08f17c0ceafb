//! The real binary, as a child process: signals, exit codes, log lines.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{Database, cluster, until};

/// The binary that is tested.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_outboxd");

/// `outboxd` with these arguments and no environment but `PATH` and the database.
pub(crate) fn outboxd(database: Option<&Database>, arguments: &[&str]) -> Command {
    outboxd_at(Path::new(BINARY), database, arguments)
}

/// The same, from a copy of the binary.
pub(crate) fn outboxd_at(binary: &Path, database: Option<&Database>, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    if let Some(database) = database {
        command.env("DATABASE_URL", url(database)).env("HOME", "/nonexistent");
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// The URL of a test's database.
pub(crate) fn url(database: &Database) -> String {
    format!("postgres://outboxd@/{}?host={}", database.name(), cluster().socket_dir().display())
}

/// Runs `outboxd` to its end.
pub(crate) async fn outboxd_output(database: Option<&Database>, arguments: &[&str]) -> Output {
    outboxd(database, arguments).output().await.unwrap()
}

/// A configuration file that goes with the test.
pub(crate) struct ConfigFile(PathBuf);

/// The text with a port that no other daemon has, if it names none. Its lines keep their numbers where they can.
fn with_a_free_port(text: &str) -> String {
    const PORT: &str = "[daemon]\nlisten = \"127.0.0.1:0\"\n";
    if text.contains("listen = ") {
        text.to_owned()
    } else if text.contains("[daemon]\n") {
        text.replacen("[daemon]\n", PORT, 1)
    } else {
        format!("{text}\n{PORT}")
    }
}

impl ConfigFile {
    /// For a daemon that runs beside others.
    pub(crate) fn new(text: &str) -> Self {
        Self::verbatim(&with_a_free_port(text))
    }

    /// With this text and nothing else.
    pub(crate) fn verbatim(text: &str) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("outboxd-test-{}-{number}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    /// Replaces the text.
    pub(crate) fn write(&self, text: &str) {
        std::fs::write(&self.0, with_a_free_port(text)).unwrap();
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `outboxd run`, with its log.
pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts the daemon on this database.
    pub(crate) fn run(database: &Database, config: &ConfigFile) -> Self {
        Self::start(outboxd(Some(database), &["run", "--config", config.path()]))
    }

    /// Starts a daemon whose command line and environment are given.
    pub(crate) fn start(command: Command) -> Self {
        Self::start_at(command, Some("info,outboxd=debug"))
    }

    /// The same with this for `RUST_LOG`, or without it.
    pub(crate) fn start_at(mut command: Command, level: Option<&str>) -> Self {
        if let Some(level) = level {
            command.env("RUST_LOG", level);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (kept, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, log }
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for a line of the log that contains `text`.
    #[track_caller]
    pub(crate) fn logged(&self, text: &str) -> impl Future<Output = ()> {
        until(&format!("the log says {text:?}"), move || {
            let found = self.log.lock().unwrap().iter().any(|line| line.contains(text));
            async move { found }
        })
    }

    /// Waits until so many lines of the log contain `text`.
    #[track_caller]
    pub(crate) fn logged_times(&self, text: &str, times: usize) -> impl Future<Output = ()> {
        until(&format!("the log says {text:?} {times} times"), move || {
            let count = self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count();
            async move { count >= times }
        })
    }

    /// Where its own port is; the system has chosen it.
    pub(crate) async fn address(&self) -> SocketAddr {
        self.logged("listening: ").await;
        let log = self.log();
        let address = log.split_once("listening: ").and_then(|(_, rest)| rest.split_once("address=")).unwrap().1;
        address.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        self.child.wait().await.unwrap()
    }
}

/// What tests give to daemons and nobody should read in a log, and how every callback's token begins.
const SECRETS: [&str; 5] = ["hunter2", "secret-of-", "pw-of-the-database", "whsec_M", "/callback/"];

impl Drop for Process {
    fn drop(&mut self) {
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{log}");
            return;
        }
        for secret in SECRETS {
            assert!(!log.contains(secret), "{secret:?} is in the log:\n{log}");
        }
    }
}
