//! outboxd
pub mod config;
pub mod event;
pub mod handler;
pub mod outcome;
pub mod snapshot;
pub mod store;
pub mod topic;
pub struct DaemonBuilder;
