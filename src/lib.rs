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
//! A module uses those above it in this list and nothing below; a test holds them to it. ARCHITECTURE.md says what each
//! does and what it knows nothing of.
//!
//! * [`topic`], [`trace`], [`event`], [`timetable`], [`callback`], [`emit`], [`flow`], [`snapshot`], [`outcome`]: the nouns, and what an
//!   outcome means.
//! * [`observe`]: every fact worth telling.
//! * [`metrics`]: what is counted.
//! * [`config`]: what the daemon is to do.
//! * [`postgres`]: connections, the schema, a throwaway server.
//! * [`store`]: one method per statement in `sql/`.
//! * [`handler`]: what is called with an event.
//! * [`systemd`]: what systemd is told.
//! * [`daemon`]: leader, bell, tail, lanes, runner, settling.
//! * [`cli`]: the verbs.

pub mod callback;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod emit;
pub mod event;
pub mod flow;
pub mod handler;
pub mod metrics;
pub mod observe;
pub mod outcome;
pub mod postgres;
pub mod snapshot;
pub mod store;
pub mod systemd;
pub mod timetable;
pub mod topic;
pub mod trace;

pub use config::Config;
pub use daemon::{Daemon, DaemonBuilder, Flow};
pub use emit::Emit;
pub use event::{Attempt, Event, EventId};
pub use handler::native::{IntoOutcome, IntoOutcomes};
pub use observe::{Observation, Observer};
pub use outcome::{Failure, Fault, Outcome, RetryPolicy};
/// Stops a daemon: cancel it, and [`Daemon::run`] drains and returns.
pub use tokio_util::sync::CancellationToken;
