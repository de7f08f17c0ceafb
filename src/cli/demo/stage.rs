//! Everything the demo starts, and removes again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::Failure;
use super::receiver::Receiver;
use crate::config::Config;
use crate::daemon::{Daemon, DaemonError};
use crate::observe::{Observation, Observer};
use crate::postgres::throwaway::Options;
use crate::postgres::{Session, ThrowawayPostgres, migrate};

/// The configuration, as a file would have it.
const CONFIG: &str = include_str!("demo.toml");
const DATABASE: &str = "postgres";
/// Observations that wait to be told. More of them are lost: the demo shows what happens, it need not show a flood.
const OBSERVATIONS_MAX: usize = 10_000;
/// How long the daemon may take until it leads; nobody else wants to.
const LEAD_MAX: Duration = Duration::from_secs(20);

/// What runs. In the order in which it is dropped: the daemon before what it works with.
pub(super) struct Stage {
    daemon: JoinSet<Result<(), DaemonError>>,
    stop_daemon: CancellationToken,
    pub(super) observations: mpsc::Receiver<Observation>,
    /// What the mail handler calls.
    pub(super) receiver: Receiver,
    /// Where the command handlers leave their files. It lies in PostgreSQL's folder and goes with it.
    pub(super) folder: PathBuf,
    postgres: ThrowawayPostgres,
}

impl Stage {
    pub(super) async fn start() -> Result<Self, Failure> {
        let postgres = ThrowawayPostgres::start(Options { durable: true, settings: Vec::new() }).await?;
        let target = postgres.target(DATABASE);
        migrate::migrate(&target).await?;
        target.connect("demo").await?.client.batch_execute(include_str!("app.sql")).await?;
        let folder = postgres.make_subfolder("demo")?;
        let key = signing_key()?;
        let receiver = Receiver::start(&key).await?;
        let config = config(&receiver.url(), &format!("whsec_{}", STANDARD.encode(key)), &folder)?;

        let (sender, observations) = mpsc::channel(OBSERVATIONS_MAX);
        let observer = Observer::watching(move |observation| {
            let _ = sender.try_send(observation.clone());
        });
        let built = Daemon::builder().config(config).target(target).observer(observer).build()?;
        let (mut daemon, stop_daemon) = (JoinSet::new(), CancellationToken::new());
        daemon.spawn(built.run(stop_daemon.clone()));
        let mut stage = Self { daemon, stop_daemon, observations, receiver, folder, postgres };
        stage.leads().await?;
        Ok(stage)
    }

    /// A session for the app or for whoever looks at the tables.
    pub(super) async fn session(&self) -> Result<Session, Failure> {
        Ok(self.postgres.target(DATABASE).connect("demo").await?)
    }

    /// The command that opens the database.
    pub(super) fn psql_line(&self) -> String {
        self.postgres.psql_line(DATABASE)
    }

    /// Stops the daemon as a service manager would; what runs may end.
    pub(super) async fn stop_daemon(&mut self) -> Result<(), Failure> {
        self.stop_daemon.cancel();
        match self.daemon.join_next().await {
            Some(Ok(ended)) => Ok(ended?),
            Some(Err(error)) => Err(Failure::internal(format!("the daemon panicked: {error}"))),
            None => Ok(()),
        }
    }

    /// Removes everything, whatever state it is in.
    pub(super) async fn remove(mut self) -> Result<(), Failure> {
        let stopped = self.stop_daemon().await;
        let Self { receiver, postgres, .. } = self;
        drop(receiver);
        postgres.stop().await?;
        stopped
    }

    async fn leads(&mut self) -> Result<(), Failure> {
        let leads = async {
            while let Some(observation) = self.observations.recv().await {
                if observation == Observation::Leading {
                    return true;
                }
            }
            false
        };
        match tokio::time::timeout(LEAD_MAX, leads).await {
            Ok(true) => Ok(()),
            // It has ended and says why.
            Ok(false) => self.stop_daemon().await.and_then(|()| Err(Failure::internal("the daemon ended"))),
            Err(_) => Err(Failure::new(format!("the daemon did not lead within {} s", LEAD_MAX.as_secs()))),
        }
    }
}

fn signing_key() -> Result<[u8; 32], Failure> {
    let mut key = [0; 32];
    let filled = SystemRandom::new().fill(&mut key);
    filled.map_err(|_| Failure::internal("the system has no random bytes for a signing key"))?;
    Ok(key)
}

/// The configuration as meant: read as the daemon reads a file, with this binary in the place of the installed one.
fn config(url: &str, secret: &str, folder: &Path) -> Result<Config, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::internal(format!("the path of this program is not known: {error}")))?;
    let Some(program) = program.to_str() else {
        return Err(Failure::new(format!("the path of this program is not UTF-8: {}", program.display())));
    };
    let folder = folder.display().to_string();
    let env = |name: &str| match name {
        "MAIL_URL" => Some(url.to_owned()),
        "MAIL_SECRET" => Some(secret.to_owned()),
        "DEMO_FOLDER" => Some(folder.clone()),
        _ => None,
    };
    let text = CONFIG.replace("[\"outboxd\"", &format!("[{}", toml::Value::from(program)));
    Config::parse(&text, "demo.toml", &env).map_err(|errors| Failure::internal(errors.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_good_and_names_this_program() {
        let config = config("http://127.0.0.1:1/", &format!("whsec_{}", STANDARD.encode([7; 32])), Path::new("/tmp"));
        let text = config.map_err(|failure| failure.to_string()).unwrap().to_toml();
        let program = std::env::current_exe().unwrap();
        assert_eq!(text.matches(program.to_str().unwrap()).count(), 2, "{text}");
        assert_eq!(text.matches("[handler.").count(), 4);
    }
}
