//! The process: parse, run the verb, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use outboxd::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
