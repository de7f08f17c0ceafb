//! Where PostgreSQL is, and sessions with it.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use super::settings::Settings;
use super::tls;
use crate::config::Secret;

/// The longest that connecting may take in all: names, sockets, authentication and session settings.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// One round trip. A server that lost us, and we a server that was lost, notice within 25 s instead of two hours; an idle
/// LISTEN session is not timed out. The server of 13 has no `idle_session_timeout`.
const SESSION_SETTINGS: &str = "\
SET TimeZone = 'UTC';
SET default_transaction_isolation = 'read committed';
SET client_min_messages = warning;
SET standard_conforming_strings = on;
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 3;
SET tcp_user_timeout = 15000;
SET outbox.max_backlog = off;
SELECT set_config('idle_session_timeout', '0', false) WHERE current_setting('server_version_num')::integer >= 140000;
SELECT current_setting('server_version_num')";

/// Where PostgreSQL is and who connects. Prints as one line without the password.
#[derive(Clone)]
pub struct Target {
    config: Config,
    origin: &'static str,
    bound: Duration,
    warnings: Vec<String>,
    tls: Option<MakeRustlsConnect>,
}

impl Target {
    /// Finds PostgreSQL the way psql would, after our own names for it: `flag`, then `OUTBOXD_DATABASE_URL`,
    /// `DATABASE_URL`, `file`, libpq's `PG*` variables, the local socket. The first of them that is there counts; what it
    /// leaves out comes from the service file, the `PG*` variables, the password file and libpq's defaults.
    pub fn resolve(
        flag: Option<&str>,
        file: Option<&Secret>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConnectError> {
        let variable = |name| env(name).filter(|value| !value.is_empty());
        let written = [
            ("--database-url", flag.map(ToOwned::to_owned)),
            ("OUTBOXD_DATABASE_URL", variable("OUTBOXD_DATABASE_URL")),
            ("DATABASE_URL", variable("DATABASE_URL")),
            ("the configuration file", file.map(|secret| secret.expose().to_owned())),
        ];
        let (origin, settings) = match written.into_iter().find_map(|(origin, text)| Some((origin, text?))) {
            Some((origin, text)) => (origin, Settings::parse(&text)),
            None if Settings::from_env(env).name_a_place() => ("the PG* environment", Ok(Settings::default())),
            None => ("the local socket", Ok(Settings::default())),
        };
        let wrong = |error| ConnectError::Settings(format!("cannot connect to PostgreSQL as {origin} says: {error}"));
        let (settings, warning) = settings.and_then(|settings| settings.complete(env)).map_err(wrong)?;
        let (config, tls, bound) = settings.into_config(env).map_err(wrong)?;
        let mut target = Self::from_config(config, origin);
        target.tls = tls.map(|wanted| tls::connector(&wanted)).transpose().map_err(wrong)?;
        target.bound = bound.map_or(CONNECT_MAX, |bound| bound.min(CONNECT_MAX));
        target.warnings.extend(warning);
        Ok(target)
    }

    /// Where a configuration says it is; `origin` tells where that came from.
    #[must_use]
    pub fn from_config(mut config: Config, origin: &'static str) -> Self {
        let hosts = config.get_hosts().len().max(config.get_hostaddrs().len()).max(1);
        config
            // One host that is gone must not use up the time of the others.
            .connect_timeout(CONNECT_MAX / u32::try_from(hosts).unwrap_or(u32::MAX))
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(15));
        Self { config, origin, bound: CONNECT_MAX, warnings: Vec::new(), tls: None }
    }

    /// Where this came from: `--database-url`, `DATABASE_URL`, …
    #[must_use]
    pub fn origin(&self) -> &'static str {
        self.origin
    }

    /// What was ignored on the way, worth telling once: a password file that others may read.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What a driver of its own needs. Holds the password; its `Debug` does not print it.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// One session. `role` is what it is for, and shows in `pg_stat_activity` as `outboxd <role>`.
    pub async fn connect(&self, role: &str) -> Result<Session, ConnectError> {
        self.open(role, None).await
    }

    /// One session that turns every NOTIFY it receives into a wake-up. It listens to nothing yet: LISTEN is the caller's.
    ///
    /// Use it for short queries only: while the rows of a query wait to be read, no notification is.
    pub async fn listen(&self, role: &str, wake: Arc<Notify>) -> Result<Session, ConnectError> {
        self.open(role, Some(wake)).await
    }

    /// A pool of at most `size` sessions, connected when they are needed. Never for LISTEN or session-level locks.
    pub fn pool(&self, size: usize) -> Result<Pool, ConnectError> {
        let mut config = self.config.clone();
        config.application_name("outboxd pool");
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match &self.tls {
            None => Manager::from_config(config, NoTls, recycling),
            Some(tls) => Manager::from_config(config, tls.clone(), recycling),
        };
        // The pool bounds the making of a connection, but not its hooks.
        let settings = Hook::async_fn(|client, _| {
            Box::pin(async move {
                let applied = timeout(CONNECT_MAX, client.batch_execute(SESSION_SETTINGS)).await;
                applied
                    .map_err(|_| HookError::message("no answer to the session settings"))?
                    .map_err(HookError::Backend)
            })
        });
        Pool::builder(manager)
            .max_size(size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_MAX))
            .create_timeout(Some(CONNECT_MAX))
            .recycle_timeout(Some(CONNECT_MAX))
            .post_create(settings)
            .build()
            .map_err(|error| ConnectError::Settings(format!("cannot make a pool of {size} connections: {error}")))
    }

    async fn open(&self, role: &str, wake: Option<Arc<Notify>>) -> Result<Session, ConnectError> {
        let mut config = self.config.clone();
        config.application_name(format!("outboxd {role}"));
        let opened = async {
            let (ended, reason) = watch::channel(None);
            let (client, task) = match &self.tls {
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    (client, tokio::spawn(drive(connection, wake, ended)))
                }
                Some(tls) => {
                    let (client, connection) = config.connect(tls.clone()).await?;
                    (client, tokio::spawn(drive(connection, wake, ended)))
                }
            };
            let task = AbortOnDropHandle::new(task);
            let answers = client.simple_query(SESSION_SETTINGS).await?;
            Ok((Session { client, version: 0, warnings: Vec::new(), reason, _task: task }, answers))
        };
        let opened = timeout(self.bound, opened).await.map_err(|_| {
            let source = format!("no answer within {} s", self.bound.as_secs()).into();
            ConnectError::Unreachable { at: self.to_string(), source }
        })?;
        let (mut session, answers) = opened.map_err(|error| self.error(error))?;
        session.version = version(&answers);
        match supported(session.version) {
            Ok(warning) => session.warnings.extend(warning),
            Err(error) => return Err(ConnectError::Settings(format!("{self}: {error}"))),
        }
        Ok(session)
    }

    fn error(&self, error: tokio_postgres::Error) -> ConnectError {
        let at = self.to_string();
        if let Some(db) = error.as_db_error() {
            let (code, message) = (db.code().clone(), db.message().to_owned());
            return ConnectError::Refused { at, code, message, error: Box::new(error) };
        }
        let lost = error.is_closed() || error.source().is_some_and(<dyn Error>::is::<std::io::Error>);
        if lost {
            // The driver's "error connecting to server" adds nothing to ours.
            let said = error.to_string();
            return ConnectError::Unreachable { at, source: error.into_source().unwrap_or_else(|| said.into()) };
        }
        // What is left is ours to repair: a password the server asks for, a way to log in that the driver lacks.
        ConnectError::Settings(format!("cannot log in to {at}: {}", describe(&error)))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.config.get_ports();
        let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
        let mut places: Vec<String> = Vec::new();
        for (at, host) in self.config.get_hosts().iter().enumerate() {
            places.push(match host {
                Host::Tcp(host) if host.contains(':') => format!("[{host}]:{}", port(at)),
                Host::Tcp(host) => format!("{host}:{}", port(at)),
                Host::Unix(folder) => Path::new(folder).join(format!(".s.PGSQL.{}", port(at))).display().to_string(),
            });
        }
        if places.is_empty() {
            let addresses = self.config.get_hostaddrs().iter().enumerate();
            places.extend(addresses.map(|(at, address)| std::net::SocketAddr::new(*address, port(at)).to_string()));
        }
        let database = self.config.get_dbname().unwrap_or_default();
        let user = self.config.get_user().unwrap_or_default();
        write!(f, "database {database:?} on {} as {user:?} (from {})", places.join(","), self.origin)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

/// A connection of our own. Dropping it closes it at once, whatever it was doing.
pub struct Session {
    pub client: Client,
    /// `server_version_num`, 150018 for 15.18.
    pub version: u32,
    /// What is worth telling about the server.
    pub warnings: Vec<String>,
    reason: watch::Receiver<Option<Arc<str>>>,
    _task: AbortOnDropHandle<()>,
}

impl Session {
    /// Ends when the connection does, with the reason. Does not borrow the session.
    pub fn closed(&self) -> impl Future<Output = Arc<str>> + Send + use<> {
        let mut reason = self.reason.clone();
        async move {
            let ended = reason.wait_for(Option::is_some).await;
            ended.ok().and_then(|reason| reason.clone()).unwrap_or_else(|| "the session was dropped".into())
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("version", &self.version).finish_non_exhaustive()
    }
}

/// Moves messages for as long as the connection lives. Polled by hand, because awaiting a [`Connection`] drops notifications.
async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<Socket, S>,
    wake: Option<Arc<Notify>>,
    ended: watch::Sender<Option<Arc<str>>>,
) {
    let reason = loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notification(_))) => {
                if let Some(wake) = &wake {
                    wake.notify_one();
                }
            }
            Some(Ok(AsyncMessage::Notice(notice))) => tracing::debug!("{}: {}", notice.severity(), notice.message()),
            Some(Ok(_)) => {}
            Some(Err(error)) => break describe(&error),
            None => break "the connection was closed".into(),
        }
    };
    // Closes the socket first: whoever waits for the reason may connect again at once.
    drop(connection);
    ended.send_replace(Some(reason.into()));
}

/// Why no session came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// What was said about where PostgreSQL is, or what was found there, cannot be used. Trying again does not help.
    #[error("{0}")]
    Settings(String),
    /// Nobody answered.
    #[error("cannot reach {at}")]
    Unreachable { at: String, source: Box<dyn Error + Send + Sync> },
    /// The server answered and said no.
    #[error("{at} refused the connection: {message} (SQLSTATE {})", code.code())]
    Refused {
        at: String,
        code: SqlState,
        message: String,
        /// The server's answer with detail and hint. Not a `source`: its text is already in this one.
        error: Box<tokio_postgres::Error>,
    },
}

impl ConnectError {
    /// The exit code of a process that gives up for this: 78 (bad configuration) where only a person can help, otherwise
    /// 69 (unreachable): a server that starts, stops or has no connection left says no in the same way.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) => 78,
            Self::Unreachable { .. } => 69,
            // 28: authentication, 3D: no such database.
            Self::Refused { code, .. } => {
                if code.code().starts_with("28") || code.code().starts_with("3D") {
                    78
                } else {
                    69
                }
            }
        }
    }
}

/// The error and its causes in one line; for the server's own errors its message and SQLSTATE.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// `server_version_num`, the last value the session settings return. 0 if it is not there.
fn version(answers: &[SimpleQueryMessage]) -> u32 {
    let last = answers.iter().rev().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    last.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Whether this server will do, and what is worth telling about it.
fn supported(version: u32) -> Result<Option<String>, String> {
    /// The first minors in which LISTEN neither fails nor goes deaf after VACUUM truncated the commit log (November 2025).
    const LISTEN_REPAIRED: [u32; 6] = [130_023, 140_020, 150_015, 160_011, 170_007, 180_001];
    let (major, minor) = (version / 10_000, version % 10_000);
    if version < 130_000 {
        // Before 10 the number has another form, and nobody runs it.
        return Err(format!("the server is PostgreSQL {major}.{minor}; outboxd needs 13 or later"));
    }
    let repaired = LISTEN_REPAIRED.into_iter().find(|repaired| repaired / 10_000 == major);
    Ok(repaired.filter(|repaired| version < *repaired).map(|repaired| {
        let first = repaired % 10_000;
        format!(
            "PostgreSQL {major}.{minor} has a bug that can silence LISTEN, repaired in {major}.{first}: until it is \
             updated, the fallback poll may have to deliver"
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_before_13_are_refused_and_deaf_minors_are_told() {
        assert!(supported(120_022).is_err_and(|e| e.contains("12.22")));
        assert_eq!(supported(0).map_err(|_| ()), Err(()));
        assert!(supported(150_014).is_ok_and(|w| w.is_some_and(|w| w.contains("repaired in 15.15"))));
        for good in [150_015, 150_018, 180_001, 190_000] {
            assert_eq!(supported(good), Ok(None));
        }
    }
}
