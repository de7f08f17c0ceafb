//! Every test that needs more than one module, in one binary. A file is a promise; `harness` starts the server.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper of a test fails like a test: by a panic")]

mod bell;
mod connect;
mod demo;
mod dispatch;
mod harness;
mod lane;
mod migrate;
mod model;
mod queries;
mod restart;
mod sweep;
mod tail;
mod throwaway;
mod tidy;
mod unit;
