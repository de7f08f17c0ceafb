//! What is looked at again and again beside the term, on a session of its own that is kept while there is something to look for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::error::Elapsed;

use super::context::Context;
use crate::observe::Observation;
use crate::postgres::ConnectError;
use crate::store::Store;

/// After a look that has failed.
const AGAIN: Duration = Duration::from_secs(5);

pub(super) type Failed = Box<dyn std::error::Error + Send + Sync>;

/// See the module's documentation.
pub(super) struct Look<T> {
    /// What its session is called, and what it does, for the log.
    role: &'static str,
    doing: &'static str,
    wanted: watch::Receiver<Arc<[T]>>,
    session: Option<Store>,
}

impl<T> Look<T> {
    pub(super) fn new(role: &'static str, doing: &'static str, wanted: watch::Receiver<Arc<[T]>>) -> Self {
        Self { role, doing, wanted, session: None }
    }

    /// What is to be looked for.
    pub(super) fn wanted(&mut self) -> Arc<[T]> {
        Arc::clone(&self.wanted.borrow_and_update())
    }

    /// The session.
    pub(super) async fn store(&mut self, context: &Context) -> Result<&Store, ConnectError> {
        let store = match self.session.take() {
            Some(store) => store,
            None => Store::new(context.target.connect(self.role).await?),
        };
        Ok(self.session.insert(store))
    }

    /// Returns when it is time to look again: after a pause, if there is something to look for, or when that has changed.
    pub(super) async fn rest(&mut self, context: &Context, looked: Result<Result<Option<Duration>, Failed>, Elapsed>) {
        let looked = looked.unwrap_or_else(|_| Err("PostgreSQL did not answer in time".into()));
        let pause = looked.unwrap_or_else(|error| {
            context.observer.tell(&Observation::Hiccup { doing: self.doing, error: error.to_string() });
            self.session = None;
            Some(AGAIN)
        });
        if pause.is_none() {
            self.session = None;
        }
        let paused = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = paused => {}
            changed = self.wanted.changed() => if changed.is_err() { std::future::pending::<()>().await },
        }
    }
}
