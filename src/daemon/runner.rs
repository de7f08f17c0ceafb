//! The runner: every attempt is a task with a deadline. It turns a time-out and a panic into outcomes, and owns the
//! tasks: when it is dropped they end, and what they hold (child processes, requests) ends with them.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::JoinSet;

use crate::event::Attempt;
use crate::handler::Handler;
use crate::outcome::{Failure, Fault, Outcome};

/// The attempts that run.
pub(super) struct Runner<T> {
    tasks: JoinSet<(T, Outcome)>,
}

impl<T: Send + 'static> Runner<T> {
    #[must_use]
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new() }
    }

    /// Starts one attempt; `ticket` comes back with its outcome.
    pub(super) fn start(&mut self, ticket: T, handler: Arc<dyn Handler>, attempt: Attempt, timeout: Duration) {
        self.tasks.spawn(async move { (ticket, run(&*handler, &attempt, timeout).await) });
    }

    /// Waits for the next attempt to end. Pending for ever while nothing runs.
    pub(super) async fn ended(&mut self) -> (T, Outcome) {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(ended)) => return ended,
                // Only `cut_off` cancels a task, and `run` catches panics: there is no other error.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// An attempt that has ended already, if there is one.
    pub(super) fn try_ended(&mut self) -> Option<(T, Outcome)> {
        self.tasks.try_join_next().and_then(Result::ok)
    }

    /// Ends every attempt now and waits until they are gone.
    pub(super) async fn cut_off(&mut self) {
        self.tasks.shutdown().await;
    }
}

async fn run(handler: &dyn Handler, attempt: &Attempt, timeout: Duration) -> Outcome {
    // A handler may panic before it returns its future, too.
    let attempt = AssertUnwindSafe(async { handler.run(attempt).await }).catch_unwind();
    match tokio::time::timeout(timeout, attempt).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Outcome::Retry { after: None, failure: Failure::new(format!("the handler panicked: {text}")) }
        }
        Err(_) => Outcome::Retry {
            after: None,
            failure: Failure::new(format!("timed out after {}", crate::config::duration::format(timeout)))
                .with_fault(Fault::Failing),
        },
    }
}
