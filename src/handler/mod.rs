//! The handlers: what is called with an event. A handler knows nothing of retries, positions or other handlers; it
//! turns one [`Attempt`] into one [`Outcome`].

pub mod answer;
pub mod command;
pub mod http;
pub mod native;
mod progress;
pub mod sql;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;

use crate::event::Attempt;
use crate::outcome::Outcome;

pub type OutcomeFuture<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// One way to hand an event over.
///
/// The future may be dropped at any point (the deadline passed, the daemon stops or lost its leadership); whatever it
/// holds, a child process for example, must end with it.
pub trait Handler: Send + Sync + 'static {
    fn run<'a>(&'a self, attempt: &'a Attempt) -> OutcomeFuture<'a>;
}
