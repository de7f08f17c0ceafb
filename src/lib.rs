//! outboxd: an inserted row reaches its handlers, and its state comes back.
//!
//! The daemon is the binary `outboxd`; this library is the same thing for a Rust program that wants it inside:
//!
//! ```no_run
//! use outboxd::{CancellationToken, Daemon, Event};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let daemon = Daemon::builder()
//!     .database("postgres:///app")
//!     .handler("greet", ["user.*"], async |event: Event| {
//!         println!("{} {}", event.topic, event.payload);
//!         Ok::<_, std::io::Error>(())
//!     })
//!     .build()?;
//! daemon.run(CancellationToken::new()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//!
//! In the order in which data flows; a module uses those above it and nothing below.
//! See ARCHITECTURE.md for what each does and what it knows nothing of.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod event;
pub mod handler;
pub mod observe;
pub mod outcome;
pub mod postgres;
pub mod snapshot;
pub mod store;
pub mod systemd;
pub mod topic;

pub use config::Config;
pub use daemon::{Daemon, DaemonBuilder};
pub use event::{Attempt, Event, EventId};
pub use handler::native::IntoOutcome;
pub use observe::{Observation, Observer};
pub use outcome::{Failure, Outcome, RetryPolicy};
/// Stops a daemon: cancel it, and [`Daemon::run`] drains and returns.
pub use tokio_util::sync::CancellationToken;
