//! A daemon in this process: what it observes can be waited for.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use outboxd::{CancellationToken, Daemon, DaemonBuilder, Observation, Observer};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Database;

/// Observations kept; enough for every test that looks at single ones.
const KEPT_MAX: usize = 200_000;

/// A daemon that runs until [`Running::stop`].
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), outboxd::daemon::DaemonError>>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    observations: Mutex<Vec<Observation>>,
    more: Notify,
}

/// A builder for a daemon on this database.
pub(crate) fn daemon(database: &Database) -> DaemonBuilder {
    Daemon::builder().target(database.target())
}

impl Running {
    /// Starts it and waits until it leads.
    pub(crate) async fn start(builder: DaemonBuilder) -> Self {
        let running = Self::start_only(builder);
        running.observed("leading", |o| matches!(o, Observation::Leading)).await;
        running
    }

    /// Starts it without waiting.
    pub(crate) fn start_only(builder: DaemonBuilder) -> Self {
        let seen = Arc::new(Seen::default());
        let told = Arc::clone(&seen);
        let observer = Observer::watching(move |observation| {
            let mut observations = told.observations.lock().unwrap();
            if observations.len() < KEPT_MAX {
                observations.push(observation.clone());
            }
            drop(observations);
            told.more.notify_waiters();
        });
        let builder = builder.listen(Some((Ipv4Addr::LOCALHOST, 0).into()));
        let daemon = builder.observer(observer).build().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(daemon.run(stop.clone()));
        Self { stop, task, seen }
    }

    /// Where its own port is; the system has chosen it.
    pub(crate) async fn address(&self) -> SocketAddr {
        let listening =
            |o: &Observation| if let Observation::Listening { address } = o { Some(*address) } else { None };
        self.observed("listening", |o| listening(o).is_some()).await;
        self.seen.observations.lock().unwrap().iter().find_map(listening).unwrap()
    }

    /// How many observations so far fit.
    pub(crate) fn count(&self, fits: impl Fn(&Observation) -> bool) -> usize {
        self.seen.observations.lock().unwrap().iter().filter(|o| fits(o)).count()
    }

    /// Waits until an observation, from the beginning on, fits.
    #[track_caller]
    pub(crate) fn observed(&self, what: &str, fits: impl Fn(&Observation) -> bool) -> impl Future<Output = ()> {
        super::until(what, move || {
            let found = self.count(&fits) > 0;
            async move { found }
        })
    }

    /// Drains and ends it.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Ends it in the middle of whatever it does, as a crash of the process would.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}
