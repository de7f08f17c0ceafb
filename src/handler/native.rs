//! Handlers written in Rust, for programs that embed the daemon.

use std::fmt::Display;
use std::future::Future;

use super::{Handler, OutcomeFuture, OutcomesFuture};
use crate::event::{Attempt, Event};
use crate::outcome::{Failure, Outcome};

/// What a Rust handler may return: nothing, an [`Outcome`], or a [`Result`] of either, whose error is a failed attempt.
///
/// An error says nothing about whose fault it is, so it counts as refused and spends an attempt. A handler that knows
/// better says so:
///
/// ```
/// use outboxd::{Failure, Fault, Outcome};
///
/// async fn send(mail: &str) -> Outcome {
///     match tokio::net::TcpStream::connect("127.0.0.1:1").await {
///         Ok(_) => Outcome::done(),
///         // Nobody is there: another mail would not do better. It counts for the breaker and spends no attempt.
///         Err(error) => Outcome::Retry {
///             after: None,
///             failure: Failure::new(format!("{mail}: {error}")).with_fault(Fault::Unreachable),
///         },
///     }
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let Outcome::Retry { failure, .. } = send("welcome").await else { panic!("somebody is there") };
/// assert_eq!(failure.fault, Fault::Unreachable);
/// # });
/// ```
pub trait IntoOutcome {
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for () {
    /// It succeeded.
    fn into_outcome(self) -> Outcome {
        Outcome::done()
    }
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

impl<T: IntoOutcome, E: Display> IntoOutcome for Result<T, E> {
    /// An error is a failed attempt, which runs again by the retry policy.
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(value) => value.into_outcome(),
            Err(error) => Outcome::Retry { after: None, failure: Failure::new(error.to_string()) },
        }
    }
}

/// What a Rust handler of batches may return: nothing or an [`Outcome`], which counts for every event; a list with an [`Outcome`] for
/// each, in the order of the events; or a [`Result`] of these, whose error is a failed attempt of all.
pub trait IntoOutcomes {
    /// One for each of so many events.
    fn into_outcomes(self, events: usize) -> Vec<Outcome>;
}

impl IntoOutcomes for () {
    fn into_outcomes(self, events: usize) -> Vec<Outcome> {
        vec![Outcome::done(); events]
    }
}

impl IntoOutcomes for Outcome {
    fn into_outcomes(self, events: usize) -> Vec<Outcome> {
        vec![self; events]
    }
}

impl IntoOutcomes for Vec<Outcome> {
    fn into_outcomes(self, _: usize) -> Vec<Outcome> {
        self
    }
}

impl<T: IntoOutcomes, E: Display> IntoOutcomes for Result<T, E> {
    fn into_outcomes(self, events: usize) -> Vec<Outcome> {
        match self {
            Ok(value) => value.into_outcomes(events),
            Err(error) => {
                vec![Outcome::Retry { after: None, failure: Failure::new(error.to_string()) }; events]
            }
        }
    }
}

/// A function that takes an [`Attempt`].
pub(crate) struct Native<F>(pub(crate) F);

impl<F, Fut> Handler for Native<F>
where
    F: Fn(Attempt) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoOutcome,
{
    fn run<'a>(&'a self, attempt: &'a Attempt) -> OutcomeFuture<'a> {
        let running = (self.0)(attempt.clone());
        Box::pin(async move { running.await.into_outcome() })
    }
}

/// A function that takes only the event.
pub(crate) struct OfEvent<F>(pub(crate) F);

impl<F, Fut> Handler for OfEvent<F>
where
    F: Fn(Event) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoOutcome,
{
    fn run<'a>(&'a self, attempt: &'a Attempt) -> OutcomeFuture<'a> {
        let running = (self.0)(Event::clone(&attempt.event));
        Box::pin(async move { running.await.into_outcome() })
    }
}

/// A function that takes a batch.
pub(crate) struct NativeBatch<F>(pub(crate) F);

impl<F, Fut> Handler for NativeBatch<F>
where
    F: Fn(Vec<Attempt>) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoOutcomes,
{
    /// A batch of one.
    fn run<'a>(&'a self, attempt: &'a Attempt) -> OutcomeFuture<'a> {
        let outcomes = self.run_batch(std::slice::from_ref(attempt));
        Box::pin(async move {
            let nothing = || Outcome::Retry { after: None, failure: Failure::new("the handler gave no outcome") };
            outcomes.await.pop().unwrap_or_else(nothing)
        })
    }

    fn run_batch<'a>(&'a self, attempts: &'a [Attempt]) -> OutcomesFuture<'a> {
        let running = (self.0)(attempts.to_vec());
        Box::pin(async move { running.await.into_outcomes(attempts.len()) })
    }
}
