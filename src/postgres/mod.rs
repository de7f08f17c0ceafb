//! PostgreSQL as a server: where it is, sessions with it, the schema in it, and a throwaway one for the demo and the tests.
//!
//! Knows nothing of events. What the daemon says to the database once it is connected is written in the store.

mod account;
mod binaries;
pub mod connect;
pub mod migrate;
mod pgpass;
mod settings;
pub mod throwaway;
mod tls;

pub use connect::{ConnectError, Session, Target};
pub use migrate::{MigrateError, SchemaStatus};
pub use throwaway::{ThrowawayError, ThrowawayPostgres};
