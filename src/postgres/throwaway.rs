//! A PostgreSQL server of our own, for the demo and for tests: made from nothing in a second, gone without a trace.
//!
//! Everything lives in one folder that only its owner can enter, the socket included, because the server trusts whoever
//! reaches it. A guard process ends the server and removes the folder if we die without doing so.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Config;

use super::account::Account;
use super::binaries::Binaries;
use super::connect::{ConnectError, Target};

/// The superuser of a throwaway server.
const USER: &str = "outboxd";
/// How long initdb, or a server that starts, may take.
const START_MAX: Duration = Duration::from_mins(1);
/// How long a fast shutdown may take before it becomes an immediate one.
const STOP_MAX: Duration = Duration::from_secs(10);
/// The longest name of a folder for sockets: a path to one has 107 bytes on Linux, 103 on macOS, and `.s.PGSQL.5432.lock`
/// follows.
const FOLDER_BYTES_MAX: usize = 80;

/// How a throwaway server differs from PostgreSQL's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether commits survive a crash of the machine. Tests are faster without.
    pub durable: bool,
    /// Settings beside that, as in `postgresql.conf`.
    pub settings: Vec<(String, String)>,
}

/// Why there is no throwaway server.
#[derive(Debug, thiserror::Error)]
pub enum ThrowawayError {
    /// PostgreSQL is not installed, or not where it was said to be.
    #[error("{0}")]
    NotFound(String),
    #[error("cannot {doing}")]
    Io { doing: String, source: io::Error },
    /// A program of PostgreSQL failed; with the last lines it wrote.
    #[error("{program} failed ({status}):\n{log}")]
    Failed { program: &'static str, status: ExitStatus, log: String },
    #[error("{program} did not finish within {} s:\n{log}", START_MAX.as_secs())]
    Slow { program: &'static str, log: String },
    #[error(transparent)]
    Connect(ConnectError),
}

/// A running server. Ends with this value, or with the process if that ends first.
#[derive(Debug)]
pub struct ThrowawayPostgres {
    folder: PathBuf,
    binaries: Binaries,
    /// Whom the server runs as, if we are root: PostgreSQL refuses to run as root.
    account: Option<Account>,
    options: Options,
    server: Option<Child>,
    guard: Guard,
    kept: AtomicBool,
}

impl ThrowawayPostgres {
    /// Makes a server from nothing and starts it; returns when it accepts connections.
    pub async fn start(options: Options) -> Result<Self, ThrowawayError> {
        let binaries = Binaries::find(&|name| std::env::var_os(name)).map_err(ThrowawayError::NotFound)?;
        let account = if rustix::process::geteuid().is_root() { Some(unprivileged()?) } else { None };
        if let Some(account) = &account {
            binaries.usable_by_others(&account.name).map_err(ThrowawayError::NotFound)?;
        }
        let folder = make_folder(account.as_ref())?;
        let guard = Guard::start(&folder, account.as_ref()).map_err(|source| {
            // Nothing else is there to remove it yet.
            let _ = fs::remove_dir_all(&folder);
            io_error("start the guard of the throwaway server", source)
        })?;
        let mut postgres =
            Self { folder, binaries, account, options, server: None, guard, kept: AtomicBool::new(false) };
        postgres.initialise().await?;
        postgres.start_again().await?;
        Ok(postgres)
    }

    /// Starts the server over the same data after [`crash`](Self::crash). Does nothing if it runs.
    pub async fn start_again(&mut self) -> Result<(), ThrowawayError> {
        if self.server.is_some() {
            return Ok(());
        }
        let mut command = self.command(self.binaries.postgres());
        command.arg("-D").arg(self.data()).arg("-k").arg(&self.folder);
        let durability = ["fsync", "synchronous_commit", "full_page_writes"].map(|name| (name, "off"));
        let own = [
            ("listen_addresses", ""),
            ("port", "5432"),
            ("unix_socket_permissions", "0700"),
            ("logging_collector", "off"),
        ];
        let given = self.options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in
            own.into_iter().chain(durability.into_iter().filter(|_| !self.options.durable)).chain(given)
        {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        self.server = Some(self.spawn(command, "postgres")?);
        self.accepting().await
    }

    /// Ends the server at once, as a crash would: no checkpoint, sessions cut off, recovery at the next start.
    pub async fn crash(&mut self) -> Result<(), ThrowawayError> {
        self.end(Signal::QUIT).await
    }

    /// Ends sessions and server in order, and removes everything.
    pub async fn stop(mut self) -> Result<(), ThrowawayError> {
        self.end(Signal::INT).await?;
        fs::remove_dir_all(&self.folder).map_err(|source| io_error(format!("remove {}", self.folder.display()), source))
    }

    /// Leaves the server running for a person to look at, whatever becomes of this value and this process.
    pub fn keep(&self) {
        // A guard that is gone already keeps everything anyway.
        let _ = self.guard.tell("keep");
        self.kept.store(true, Ordering::Release);
    }

    /// The process id of the server; `None` after a crash.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Where one of its databases is, for the superuser.
    #[must_use]
    pub fn target(&self, database: &str) -> Target {
        let mut config = Config::new();
        config.host_path(&self.folder).port(5432).user(USER).dbname(database);
        Target::from_config(config, "a throwaway server")
    }

    /// The folder with the server's socket; everything else of the server is in it, too.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.folder
    }

    /// Makes a folder that goes when the server goes, whoever removes it, for what belongs to the same demo or test.
    pub fn make_subfolder(&self, name: &str) -> Result<PathBuf, ThrowawayError> {
        let folder = self.folder.join(name);
        let failed = |source| io_error(format!("make the folder {}", folder.display()), source);
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        if let Some(account) = &self.account {
            // The guard is that account, and removes files only from folders of its own.
            std::os::unix::fs::lchown(&folder, Some(account.uid), Some(account.gid)).map_err(failed)?;
        }
        Ok(folder)
    }

    /// What the server writes.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("postgres.log")
    }

    /// The command that opens one of its databases in psql.
    #[must_use]
    pub fn psql_line(&self, database: &str) -> String {
        format!("psql -h {} -U {USER} -d {database}", self.folder.display())
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    async fn initialise(&mut self) -> Result<(), ThrowawayError> {
        let mut command = self.command(self.binaries.initdb());
        command.args(["-A", "trust", "--no-sync", "--no-locale", "--encoding=UTF8", "-U", USER, "-D"]).arg(self.data());
        let mut initdb = Initdb(self.spawn(command, "initdb")?);
        let ended = wait(&mut initdb.0, START_MAX).await;
        drop(initdb);
        self.tell_guard("")?;
        match ended.map_err(|source| io_error("wait for initdb", source))? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(ThrowawayError::Failed { program: "initdb", status, log: self.log_tail("initdb") }),
            None => Err(ThrowawayError::Slow { program: "initdb", log: self.log_tail("initdb") }),
        }
    }

    /// A program that runs as the server's account and sees none of our own connection settings.
    fn command(&self, program: PathBuf) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").current_dir(&self.folder);
        // A group of its own: an interrupt from the terminal is for us, and we stop the server when we are ready.
        become_account(&mut command, self.account.as_ref()).process_group(0);
        command
    }

    /// Starts `program` with its output in a file of that name, under the guard's eyes.
    fn spawn(&self, mut command: Command, program: &'static str) -> Result<Child, ThrowawayError> {
        let path = self.folder.join(format!("{program}.log"));
        let log = File::options().create(true).append(true).open(&path).and_then(|log| Ok((log.try_clone()?, log)));
        let (out, err) = log.map_err(|source| io_error(format!("write {}", path.display()), source))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|source| io_error(format!("start {}", command.get_program().display()), source))?;
        self.tell_guard(&child.id().to_string()).inspect_err(|_| {
            // Without its guard it might outlive us.
            let _ = child.kill().and_then(|()| child.wait());
        })?;
        Ok(child)
    }

    /// Polls the one fact that counts: a session.
    async fn accepting(&mut self) -> Result<(), ThrowawayError> {
        let target = self.target("postgres");
        let deadline = Instant::now() + START_MAX;
        loop {
            if let Some(server) = &mut self.server
                && let Some(status) = server.try_wait().map_err(|source| io_error("wait for postgres", source))?
            {
                self.server = None;
                self.tell_guard("")?;
                return Err(ThrowawayError::Failed { program: "postgres", status, log: self.log_tail("postgres") });
            }
            match target.connect("throwaway").await {
                Ok(_) => return Ok(()),
                Err(error @ ConnectError::Settings(_)) => return Err(ThrowawayError::Connect(error)),
                Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(20)).await,
                Err(_) => return Err(ThrowawayError::Slow { program: "postgres", log: self.log_tail("postgres") }),
            }
        }
    }

    /// Ends the server with a signal, and with an immediate shutdown if that takes too long.
    async fn end(&mut self, signal: Signal) -> Result<(), ThrowawayError> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        send(&server, signal);
        let failed = |source| io_error("wait for postgres", source);
        if wait(&mut server, STOP_MAX).await.map_err(failed)?.is_none() {
            send(&server, Signal::QUIT);
            if wait(&mut server, STOP_MAX).await.map_err(failed)?.is_none() {
                server.kill().map_err(failed)?;
                server.wait().map_err(failed)?;
            }
        }
        self.tell_guard("")
    }

    fn tell_guard(&self, line: &str) -> Result<(), ThrowawayError> {
        self.guard.tell(line).map_err(|source| io_error("reach the guard of the throwaway server", source))
    }

    fn log_tail(&self, program: &str) -> String {
        let log = fs::read(self.folder.join(format!("{program}.log"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for ThrowawayPostgres {
    /// The immediate way, for panics and errors; [`stop`](Self::stop) is the orderly one.
    fn drop(&mut self) {
        if self.kept.load(Ordering::Acquire) {
            return;
        }
        if let Some(server) = &mut self.server {
            send(server, Signal::QUIT);
            // A server that a test has paused would never see the first signal.
            send(server, Signal::CONT);
            // PostgreSQL kills after 5 s what does not end by itself.
            let _ = server.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
        self.guard.dismiss();
    }
}

/// initdb. Whoever stops waiting for it removes its folder, so it ends first, with the programs it runs.
struct Initdb(Child);

impl Drop for Initdb {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let group = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
            let _ = group.map(|group| kill_process_group(group, Signal::KILL));
            let _ = self.0.wait();
        }
    }
}

/// The process that ends the server if we cannot.
#[derive(Debug)]
struct Guard(Child);

impl Guard {
    fn start(folder: &Path, account: Option<&Account>) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(include_str!("guard.sh")).arg("outboxd-guard").arg(folder).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own: whatever ends our group must not end the guard first.
        become_account(&mut command, account).process_group(0).spawn().map(Self)
    }

    fn tell(&self, line: &str) -> io::Result<()> {
        let mut pipe = self.0.stdin.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.write_all(format!("{line}\n").as_bytes())
    }

    /// The folder is gone and the server has ended: nothing is left for it to do.
    fn dismiss(&mut self) {
        let _ = self.tell("");
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn become_account<'a>(command: &'a mut Command, account: Option<&Account>) -> &'a mut Command {
    if let Some(account) = account {
        // As root this also drops every supplementary group.
        command.uid(account.uid).gid(account.gid);
    }
    command
}

fn unprivileged() -> Result<Account, ThrowawayError> {
    Account::named("postgres").or_else(|| Account::named("nobody")).filter(|account| account.uid != 0).ok_or_else(
        || {
            let error = "PostgreSQL does not run as root, and there is no account postgres or nobody to run it as";
            ThrowawayError::NotFound(error.into())
        },
    )
}

/// A fresh folder, for its owner only: in the temporary folder, or in /tmp if a path in that is too long for a socket,
/// needs quotes in a shell, or is closed to the server's account.
fn make_folder(account: Option<&Account>) -> Result<PathBuf, ThrowawayError> {
    let temporary = std::env::temp_dir();
    let name = format!("outboxd-pg-{:08x}", fastrand::u32(..));
    let fits = temporary.as_os_str().len() + 1 + name.len() <= FOLDER_BYTES_MAX;
    let plain =
        temporary.as_os_str().as_encoded_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(b));
    let open = account.is_none() || super::binaries::closed_to_others(&temporary).is_none();
    let folder = if fits && plain && open { temporary } else { PathBuf::from("/tmp") }.join(name);
    let failed = |source| io_error(format!("make the folder {}", folder.display()), source);
    // Fails if it exists: nobody can prepare it for us.
    DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
    // A umask takes rights away, never ours; but one that takes our own would break everything that follows.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    if let Some(account) = account {
        std::os::unix::fs::chown(&folder, Some(account.uid), Some(account.gid)).map_err(failed)?;
    }
    Ok(folder)
}

fn send(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // It has not been waited for, so the id is still its own; it may have ended by itself, which is as good.
    let _ = pid.map(|pid| kill_process(pid, signal));
}

/// Polls for the end of a child, because its handle must not belong to the runtime of whoever happens to start it.
async fn wait(child: &mut Child, bound: Duration) -> io::Result<Option<ExitStatus>> {
    let ended = async {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(bound, ended).await.ok().transpose()
}

fn io_error(doing: impl Into<String>, source: io::Error) -> ThrowawayError {
    ThrowawayError::Io { doing: doing.into(), source }
}
