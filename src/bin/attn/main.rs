//! The program `attn`: sequence-parallel attention on a bundled model or on tensors from a file.

mod bench;
mod cli;
mod digits;
mod doctor;
mod failure;
mod files;
#[cfg(unix)]
mod launch;
#[cfg(not(unix))]
#[path = "launch/elsewhere.rs"]
mod launch;
mod machine;
mod output;
mod pipelines;
mod plan;
mod random;
mod ranks;
mod report;

use std::process::ExitCode;

use crate::cli::{Command, DeviceName};
use crate::failure::Failure;

fn main() -> ExitCode {
    match cli::parse().and_then(execute) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(args),
        Command::Launch(args) => launch::run(&args),
        Command::LaunchKeeper => launch::keep(),
        Command::LaunchRank(args) => launch::become_rank(&args),
        Command::Run(args) => {
            ranks::check(&args)?;
            match (&args.input, args.device) {
                (None, DeviceName::Cpu) => digits::run(&args),
                _ => files::run(&args),
            }
        }
    }
}
