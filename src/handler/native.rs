//! Handlers written in Rust, for programs that embed the daemon.

use std::fmt::Display;
use std::future::Future;

use super::{Handler, OutcomeFuture};
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
