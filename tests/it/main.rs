//! Every test that needs more than one module, in one binary. A file is a promise; `harness` starts the server.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper of a test fails like a test: by a panic")]
#![allow(clippy::needless_raw_string_hashes, reason = "expect-test writes its snapshots like this")]

mod bell;
mod bounds;
mod calm;
mod cli;
mod clock;
mod connect;
mod crash;
mod demo;
mod disk;
mod dispatch;
mod extremes;
mod failover;
mod fuzz;
mod handlers;
mod harness;
mod insert;
mod interventions;
mod key_model;
mod key_order;
mod lane;
mod lifecycle;
mod locked;
mod long_work;
mod migrate;
mod model;
mod network;
mod on_dead;
mod once;
mod operate;
mod ordered;
mod outage;
mod partitions;
mod proxy;
mod publish;
mod queries;
mod refusals;
mod reload;
mod restart;
mod restore;
mod retention;
mod retire;
mod schema;
mod shutdown;
mod sql_handlers;
mod sweep;
mod systemd;
mod tail;
mod takeover;
mod target;
mod throwaway;
mod tidy;
mod topics;
mod unit;
