//! The runner: every attempt is a task with a deadline. It turns a time-out and a panic into outcomes, and owns the
//! tasks: when it is dropped they end, and what they hold (child processes, requests) ends with them.

use std::collections::HashMap;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::{AbortHandle, JoinSet};

use crate::event::Attempt;
use crate::handler::Handler;
use crate::outcome::{Failure, Fault, Outcome};

/// The attempts that run.
pub(super) struct Runner<T> {
    tasks: JoinSet<(T, Outcome)>,
    /// Those whose outcome is still wanted.
    wanted: HashMap<T, AbortHandle>,
}

impl<T: Copy + Eq + Hash + Send + 'static> Runner<T> {
    #[must_use]
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), wanted: HashMap::new() }
    }

    /// Starts one attempt; `ticket` comes back with its outcome.
    pub(super) fn start(&mut self, ticket: T, handler: Arc<dyn Handler>, attempt: Attempt, timeout: Duration) {
        let task = self.tasks.spawn(async move { (ticket, run(&*handler, &attempt, timeout).await) });
        self.wanted.insert(ticket, task);
    }

    /// Ends one attempt now: what it holds (child processes, requests) ends with it, and its outcome never arrives, not
    /// even if it had ended already. Returns whether there was one.
    #[allow(dead_code, reason = "the term does not hear of cancelled deliveries yet")]
    pub(super) fn cancel(&mut self, ticket: &T) -> bool {
        self.wanted.remove(ticket).is_some_and(|task| {
            task.abort();
            true
        })
    }

    /// Waits for the next attempt to end. Pending for ever while nothing runs.
    pub(super) async fn ended(&mut self) -> (T, Outcome) {
        loop {
            match self.tasks.join_next().await {
                // An error is a task that was cancelled: `run` catches panics, so there is no other one.
                Some(joined) => {
                    if let Some(ended) = joined.ok().and_then(|ended| self.if_wanted(ended)) {
                        return ended;
                    }
                }
                None => std::future::pending().await,
            }
        }
    }

    /// An attempt that has ended already, if there is one.
    pub(super) fn try_ended(&mut self) -> Option<(T, Outcome)> {
        while let Some(joined) = self.tasks.try_join_next() {
            if let Some(ended) = joined.ok().and_then(|ended| self.if_wanted(ended)) {
                return Some(ended);
            }
        }
        None
    }

    /// Ends every attempt now and waits until they are gone.
    pub(super) async fn cut_off(&mut self) {
        self.wanted.clear();
        self.tasks.shutdown().await;
    }

    fn if_wanted(&mut self, ended: (T, Outcome)) -> Option<(T, Outcome)> {
        self.wanted.remove(&ended.0).map(|_| ended)
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

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    use super::*;
    use crate::event::{Event, EventId};
    use crate::handler::OutcomeFuture;

    /// Says when it is called and when its future is dropped; ends if it is told to.
    struct Told {
        says: UnboundedSender<&'static str>,
        ends: bool,
    }

    struct Says(UnboundedSender<&'static str>);

    impl Drop for Says {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }

    impl Handler for Told {
        fn run<'a>(&'a self, _: &'a Attempt) -> OutcomeFuture<'a> {
            Box::pin(async move {
                let _says = Says(self.says.clone());
                self.says.send("begun").unwrap();
                if !self.ends {
                    std::future::pending::<()>().await;
                }
                Outcome::Done { result: None }
            })
        }
    }

    fn attempt() -> Attempt {
        let event = Event {
            id: EventId(1),
            topic: "a".to_owned(),
            key: None,
            payload: "{}".to_owned(),
            headers: "{}".to_owned(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        Attempt {
            event: Arc::new(event),
            handler: "told".into(),
            number: 1,
            has_row: false,
            installation: uuid::Uuid::nil(),
        }
    }

    #[tokio::test]
    async fn a_cancelled_attempt_is_dropped_and_its_outcome_never_arrives() {
        let (says, mut said) = unbounded_channel();
        let mut runner = Runner::new();
        let long = Duration::from_hours(1);
        let hangs: Arc<dyn Handler> = Arc::new(Told { says: says.clone(), ends: false });
        runner.start(1, hangs, attempt(), long);
        assert_eq!(said.recv().await, Some("begun"));
        assert!(runner.cancel(&1), "it runs");
        assert!(!runner.cancel(&1), "it runs no more");
        // Whoever waits for the next outcome drives the tasks.
        let ends: Arc<dyn Handler> = Arc::new(Told { says: says.clone(), ends: true });
        runner.start(2, Arc::clone(&ends), attempt(), long);
        assert_eq!(runner.ended().await.0, 2);
        let mut rest = vec![said.recv().await, said.recv().await, said.recv().await];
        rest.sort_unstable();
        assert_eq!(rest, [Some("begun"), Some("dropped"), Some("dropped")]);

        runner.start(3, ends, attempt(), long);
        assert_eq!((said.recv().await, said.recv().await), (Some("begun"), Some("dropped")));
        tokio::task::yield_now().await;
        assert!(runner.cancel(&3), "it has ended and nobody has heard of it");
        assert!(runner.try_ended().is_none());
        assert!(!runner.cancel(&4), "there was none");
    }
}
