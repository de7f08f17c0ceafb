//! outboxd
pub mod config;
pub mod event;
pub mod handler;
pub mod outcome;
pub mod postgres;
pub mod topic;
pub struct DaemonBuilder;
