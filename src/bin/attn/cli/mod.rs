//! The command line.

mod args;
mod names;
mod values;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

pub(crate) use self::args::{BenchArgs, DoctorArgs, LaunchArgs, RankArgs, RunArgs, SharingArgs};
pub(crate) use self::names::{Backend, CommName, Degree, DeviceName, Form, Strategy, TypeName};
pub(crate) use self::values::{MAX_RANKS, span};
use crate::failure::Failure;

const AFTER_HELP: &str = "\
Without --input, the bundled model draws the digits 0 to 9 once for each strategy, and the pictures are compared \
with each other and with PyTorch's.
With --input, attention runs on the tensors `q`, `k` and `v` (and `joint_q`, `joint_k`, `joint_v`) of a safetensors \
file, sharded over the ranks as each strategy has it, and is put together again.
With --comm tcp, mpi or nccl this process is one rank of several, which `attn launch`, mpirun, torchrun or srun has started: \
each reads the file and computes its share; rank 0 alone writes, prints, and computes what the result is compared with.
With --device cuda the ranks are streams of one GPU, and the numbers f16 or bf16. The bundled model computes in f32 and \
runs on the host alone, so without --input attention runs there on made-up tensors, [1, 2048, 8, 128], and is compared \
with the host's kernel in f32.

Exit codes:
  0  done
  1  a result differs from one rank, PyTorch or the host by more than rounding explains
  2  the command line is wrong, or its degrees do not fit its ranks, or the environment names no place among other ranks
  3  the input is: shapes, types, a tensor missing, a damaged file, a strategy that cannot run on it
  4  the system refused: a file cannot be read or written, no memory, no thread, no GPU or driver; or another rank failed, \
or is lost
  5  a mistake in this program";

const BENCH_AFTER_HELP: &str = "\
Rows:
  attention        the whole call, from the moment at which all ranks are ready to the end of the last one
  pre kernel post  parts of the call, each by its slowest rank, in runs of their own: there each part waits for the device
  reshard, back    copies from a share of the positions to a share of the heads, and back, one tensor on all ranks
  begin, finish    making the state that ring carries, and dividing it into the output, on one rank
A floor is what the same work takes at least: for copies a plain copy of as many bytes, measured beside them; for \
attention the time of as many operations as a matrix product, at the rate of --gemm-tflops or, on cuda, at that of the \
tensor cores with nothing else to do.
With --json each row is an object on a line of its own, attention first.";

const LAUNCH_AFTER_HELP: &str = "\
Each rank finds its place in its environment: ATTN_RANK, ATTN_WORLD_SIZE, ATTN_LOCAL_RANK and ATTN_LOCAL_WORLD_SIZE (on its \
host), ATTN_MASTER_ADDR and ATTN_MASTER_PORT (where ranks meet), ATTN_TOKEN (by which they know each other). It reads \
nothing from stdin. What ranks print comes out in whole lines, behind their numbers; lines of more than 64 KiB are cut.
When a rank fails, the others have --grace seconds to notice and to say so. Then they get SIGTERM, and 2 s later SIGKILL. \
SIGINT, SIGTERM and SIGHUP are passed on to all ranks; after a second one they have 2 s.

Exit codes: 0, that of the first rank that failed (128 + n for signal n; 127 if the program is not there, 126 if it cannot \
be started), 2 for a wrong command line, or 4 if a host is not reached or lost.";

/// Sequence-parallel attention: runs strategies side by side, and compares them.
#[derive(Debug, Parser)]
#[command(name = "attn", version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

/// What the program is asked to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs attention; what `attn` without a command does too.
    #[command(after_help = AFTER_HELP)]
    Run(RunArgs),
    /// Measures attention, its phases and the kernels round it, on values that look random.
    #[command(after_help = BENCH_AFTER_HELP)]
    Bench(BenchArgs),
    /// Says what this build can do on this machine, and checks that it does.
    Doctor(DoctorArgs),
    /// Starts a program several times, as the ranks of one world, on this machine or on several.
    #[command(after_help = LAUNCH_AFTER_HELP)]
    Launch(LaunchArgs),
    /// Stands between a launcher and the ranks of a host.
    #[command(hide = true)]
    LaunchKeeper,
    /// Becomes a rank.
    #[command(hide = true)]
    LaunchRank(RankArgs),
}

/// Reads the command line.
///
/// # Errors
/// If it is wrong, in one line; or if it asks for help or the version, which is printed here.
pub(crate) fn parse() -> Result<Command, Failure> {
    match Cli::try_parse() {
        Ok(cli) => Ok(cli.command.unwrap_or(Command::Run(cli.run))),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            crate::report::print(&error.to_string()).and(Err(Failure::Answered))
        }
        Err(error) => Err(Failure::Usage(one_line(&error.to_string()))),
    }
}

/// What clap says about a mistake, on one line and without the usage that follows; and whose help to ask for.
fn one_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let said =
        message.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let words: Vec<&str> = said.map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = words.join("; ").replace(":; ", ": ").replace("; [", " [");
    let given = std::env::args().nth(1);
    let command =
        ["run", "bench", "doctor", "launch"].into_iter().find(|command| given.as_deref() == Some(command));
    match command {
        Some(command) => format!("{said} (see `attn {command} --help`)"),
        None => format!("{said} (see `attn --help`)"),
    }
}
