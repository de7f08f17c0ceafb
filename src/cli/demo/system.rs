//! What a larger demo runs on: a PostgreSQL of its own, and the daemon as a process of its own, so that both can be killed.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use super::super::{Failure, Global};
use crate::daemon::Daemon;
use crate::postgres::throwaway::Options;
use crate::postgres::{Session, ThrowawayPostgres, migrate};

const DATABASE: &str = "postgres";
/// How long the daemon may take to end when it is asked to.
const ENDS_MAX: Duration = Duration::from_secs(20);

/// The daemon of a demo, which ends when its stdin does: so it never outlives the demo.
#[derive(Debug, Args)]
pub(in crate::cli) struct DemoDaemon;

impl DemoDaemon {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Failure> {
        let daemon = Daemon::builder().config(global.load()?).target(global.target()?).build()?;
        let stop = CancellationToken::new();
        let end = async {
            // An error is an end as well.
            let _ = tokio::io::stdin().read(&mut [0]).await;
            stop.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = daemon.run(stop.clone()) => Ok(result?),
            () = end => Ok(()),
        }
    }
}

/// PostgreSQL and the daemon. The daemon goes before PostgreSQL.
pub(super) struct System {
    daemon: Option<Running>,
    config: PathBuf,
    postgres: ThrowawayPostgres,
}

struct Running {
    child: Child,
    /// Its end is the daemon's.
    stdin: ChildStdin,
}

impl System {
    /// Makes PostgreSQL with the schema and the app's own tables. The daemon is to be started.
    pub(super) async fn start(config: &str, tables: &str) -> Result<Self, Failure> {
        let postgres = ThrowawayPostgres::start(Options { durable: true, settings: Vec::new() }).await?;
        let target = postgres.target(DATABASE);
        migrate::migrate(&target).await?;
        target.connect("demo").await?.client.batch_execute(tables).await?;
        let path = postgres.make_subfolder("demo")?.join("outboxd.toml");
        let written = std::fs::write(&path, config);
        written.map_err(|error| Failure::new(format!("{} cannot be written: {error}", path.display())))?;
        Ok(Self { daemon: None, config: path, postgres })
    }

    pub(super) async fn session(&self) -> Result<Session, Failure> {
        Ok(self.postgres.target(DATABASE).connect("demo").await?)
    }

    pub(super) fn psql_line(&self) -> String {
        self.postgres.psql_line(DATABASE)
    }

    pub(super) fn start_daemon(&mut self) -> Result<(), Failure> {
        let failed =
            |error: std::io::Error| Failure::internal(format!("this program cannot be started again: {error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let url = format!("postgresql://outboxd@/{DATABASE}?host={}", self.postgres.socket_dir().display());
        let mut child = Command::new(program)
            .arg("demo-daemon")
            .arg("--config")
            .arg(&self.config)
            .env("OUTBOXD_DATABASE_URL", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A group of its own: an interrupt from the terminal is for the demo.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdin = child.stdin.take().ok_or_else(|| Failure::internal("the daemon ended at once"))?;
        self.daemon = Some(Running { child, stdin });
        Ok(())
    }

    /// Ends the daemon as `kill -9` does.
    pub(super) async fn kill_daemon(&mut self) -> Result<(), Failure> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let killed = daemon.child.kill().await;
        killed.map_err(|error| Failure::new(format!("the daemon cannot be killed: {error}")))
    }

    /// Ends PostgreSQL as a crash does, and starts it over the same data.
    pub(super) async fn crash_postgres(&mut self) -> Result<(), Failure> {
        self.postgres.crash().await?;
        Ok(self.postgres.start_again().await?)
    }

    /// Stops the daemon as a service manager does.
    pub(super) async fn stop_daemon(&mut self) -> Result<(), Failure> {
        let Some(Running { mut child, stdin }) = self.daemon.take() else { return Ok(()) };
        drop(stdin);
        match tokio::time::timeout(ENDS_MAX, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(status) => Err(Failure::new(format!("the daemon ended badly: {status:?}"))),
            Err(_) => Err(Failure::new(format!("the daemon did not end within {} s", ENDS_MAX.as_secs()))),
        }
    }

    /// Removes everything, whatever state it is in.
    pub(super) async fn remove(mut self) -> Result<(), Failure> {
        let stopped = self.stop_daemon().await;
        let Self { daemon, postgres, .. } = self;
        drop(daemon);
        postgres.stop().await?;
        stopped
    }
}

/// An address of this machine that nobody listens on.
pub(super) fn free_address() -> Result<String, Failure> {
    let failed = |error| Failure::new(format!("cannot listen on 127.0.0.1: {error}"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    Ok(listener.local_addr().map_err(failed)?.to_string())
}
