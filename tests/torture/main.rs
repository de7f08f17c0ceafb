//! The torture test: two real daemons and a real, durable PostgreSQL under load and under faults, compared at the end with a
//! ledger kept outside of both. `tests/README.md` says how to run it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper of a test fails like a test: by a panic")]

mod arguments;
mod check;
mod daemons;
mod facts;
mod ledger;
mod nemesis;
mod producers;
#[path = "../it/harness/proxy.rs"]
mod proxy;
mod report;
mod run;
mod seeded;
mod server;
mod sink;

use std::process::ExitCode;

use arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::read();
    if arguments.is_for_others() {
        return ExitCode::SUCCESS;
    }
    let well = match &arguments.seeded_bugs {
        Some(name) => seeded::all_are_seen(name),
        None => seeded::all_match_the_source() && run_on_a_runtime(&arguments),
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_on_a_runtime(arguments: &Arguments) -> bool {
    let plan = arguments.plan();
    let longest = plan.longest();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let well = runtime.block_on(async { tokio::time::timeout(longest, run::run(&plan)).await });
    well.unwrap_or_else(|_| {
        println!("torture: FAILED: has not ended within {longest:?} (--seed {})", plan.seed);
        false
    })
}
