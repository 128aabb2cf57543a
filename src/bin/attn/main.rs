//! The program `attn`: sequence-parallel attention on a bundled model or on tensors from a file.

mod cli;
mod digits;
mod doctor;
mod failure;
mod files;
mod output;
mod pipelines;
mod plan;
mod report;

use std::process::ExitCode;

use crate::cli::Command;
use crate::failure::Failure;

fn main() -> ExitCode {
    match cli::parse().and_then(execute) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Doctor(args) => doctor::run(args),
        Command::Run(args) => match args.input.clone() {
            Some(input) => files::run(&args, &input),
            None => digits::run(&args),
        },
    }
}
