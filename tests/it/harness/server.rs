//! PostgreSQL's other programs, and a server over a folder that a test has prepared: a standby, or one whose clock or disk
//! the test holds in its hand.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use outboxd::postgres::{Target, ThrowawayPostgres};
use rustix::process::{Pid, Signal, kill_process};

use super::until;

/// The programs beside a running server, for the account it runs as.
pub(crate) struct Programs {
    folder: PathBuf,
    account: Option<(u32, u32)>,
}

impl Programs {
    pub(crate) async fn of(server: &ThrowawayPostgres) -> Self {
        let session = server.target("postgres").connect("test").await.unwrap();
        let folder =
            session.client.query_one("SELECT setting FROM pg_config WHERE name = 'BINDIR'", &[]).await.unwrap();
        let owner = std::fs::metadata(server.socket_dir()).unwrap();
        let account = rustix::process::geteuid().is_root().then(|| (owner.uid(), owner.gid()));
        Self { folder: PathBuf::from(folder.get::<_, String>(0)), account }
    }

    /// One of them, with no arguments yet.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.join(program));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs one of them to its good end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a server over `folder/data`, with its socket in `folder`; `given` are settings and the environment.
    pub(crate) async fn serve(
        &self,
        folder: &Path,
        settings: &[(&str, &str)],
        environment: &[(&str, &Path)],
    ) -> Server {
        let log = std::fs::File::options().create(true).append(true).open(folder.join("postgres.log")).unwrap();
        let mut command = self.command("postgres");
        command.arg("-D").arg(folder.join("data")).arg("-k").arg(folder).args(["-c", "listen_addresses="]);
        for (name, value) in [("fsync", "off"), ("port", "5432")].iter().chain(settings) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // A group of its own, as the throwaway server has: an interrupt from the terminal is for the tests.
        command.envs(environment.iter().copied()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let server = Server { folder: folder.to_owned(), child: command.spawn().unwrap() };
        until("the server accepts connections", async || server.target("postgres").connect("test").await.is_ok()).await;
        server
    }
}

/// A server that ends with this value. Its folder belongs to a throwaway server, which must outlive it.
pub(crate) struct Server {
    folder: PathBuf,
    child: Child,
}

impl Server {
    pub(crate) fn target(&self, database: &str) -> Target {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.folder).port(5432).user("outboxd").dbname(database);
        Target::from_config(config, "a server of this test")
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) {
        self.end(Signal::INT);
    }

    fn end(&mut self, signal: Signal) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
            kill_process(pid, signal).unwrap();
            self.child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    /// At once, as a crash would.
    fn drop(&mut self) {
        self.end(Signal::QUIT);
    }
}
