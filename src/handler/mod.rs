//! The handlers: what is called with an event. A handler knows nothing of retries, positions or other handlers; it
//! turns one [`Attempt`] into one [`Outcome`].

pub mod answer;
mod batch;
pub mod command;
mod guard;
pub mod http;
pub mod native;
mod progress;
pub mod sql;
#[cfg(test)]
mod tests;
mod url;

use std::future::Future;
use std::pin::Pin;

use futures_util::future::join_all;

use crate::event::Attempt;
use crate::outcome::Outcome;

pub type OutcomeFuture<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;
pub type OutcomesFuture<'a> = Pin<Box<dyn Future<Output = Vec<Outcome>> + Send + 'a>>;

/// One way to hand events over.
///
/// A future may be dropped at any point (the deadline passed, the daemon stops or lost its leadership); whatever it
/// holds, a child process for example, must end with it.
pub trait Handler: Send + Sync + 'static {
    fn run<'a>(&'a self, attempt: &'a Attempt) -> OutcomeFuture<'a>;

    /// Hands many over; an outcome for each, in their order. One that takes one at a time gets them at the same time.
    fn run_batch<'a>(&'a self, attempts: &'a [Attempt]) -> OutcomesFuture<'a> {
        Box::pin(join_all(attempts.iter().map(|attempt| self.run(attempt))))
    }
}
