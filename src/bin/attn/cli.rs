//! The command line.

use std::path::PathBuf;

use attn::{DType, JointStrategy, Mask};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::failure::Failure;

/// More ranks than this are a slip of the finger: each is a thread of this process.
pub(crate) const MAX_RANKS: usize = 1024;

const AFTER_HELP: &str = "\
Without --input, the bundled model draws the digits 0 to 9 once for each strategy, and the pictures are compared \
with each other and with PyTorch's.
With --input, attention runs on the tensors `q`, `k` and `v` (and `joint_q`, `joint_k`, `joint_v`) of a safetensors \
file, sharded over the ranks.

Exit codes:
  0  done
  1  a result differs from one rank, or from PyTorch, by more than rounding explains
  2  the command line is wrong
  3  the input is: shapes, types, a tensor missing, a damaged file, a strategy that cannot run on it
  4  the system refused: a file cannot be read or written, no memory, no thread
  5  a mistake in this program";

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
    /// Says what this build can do on this machine, and checks that it does.
    Doctor(DoctorArgs),
}

/// Arguments of `attn run`.
#[derive(Args, Debug, Default)]
pub(crate) struct RunArgs {
    /// A safetensors file with the tensors `q`, `k` and `v`; without it, the bundled model runs.
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Where to write: with --input, a safetensors file with `out`; without, the picture [default: digits.png].
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Strategies to run, one or several [default: none with --input, else all].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) strategy: Vec<Strategy>,
    /// Numbers of ranks to run them on, one or several [default: 1 with --input, else 2,4].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = at_most_1024)]
    pub(crate) ranks: Vec<usize>,
    /// The kernel.
    #[arg(long, value_name = "NAME", default_value = "flash")]
    pub(crate) backend: Backend,
    /// Threads for each rank's kernel [default: the cores, divided by the ranks].
    #[arg(long, value_name = "N", value_parser = at_most_1024)]
    pub(crate) threads: Option<usize>,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Tells the layout: the number of the head axis [default: 2].
    #[arg(long, value_name = "AXIS", help_heading = "With --input")]
    pub(crate) scatter: Option<usize>,
    /// Tells the layout: the number of the sequence axis [default: 1].
    ///
    /// (2, 1) is [batch, seq, heads, head_dim], (1, 2) is [batch, heads, seq, head_dim], (2, 0) is [seq, batch,
    /// heads, head_dim].
    #[arg(long, value_name = "AXIS", help_heading = "With --input")]
    pub(crate) gather: Option<usize>,
    /// Which keys a query may attend [default: none].
    #[arg(long, value_name = "NAME", help_heading = "With --input")]
    pub(crate) mask: Option<MaskName>,
    /// The type to compute in [default: the file's].
    #[arg(long, value_name = "TYPE", help_heading = "With --input")]
    pub(crate) dtype: Option<TypeName>,
    /// What the scores are multiplied by [default: 1 / sqrt(head_dim)].
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = scale, help_heading = "With --input")]
    pub(crate) scale: Option<f32>,
    /// Where the file's joint tensors stand in the joint sequence.
    #[arg(long, value_name = "WHERE", help_heading = "With --input")]
    pub(crate) joint: Option<Side>,
    /// Writes the log-sum-exp of each row too.
    #[arg(long, help_heading = "With --input")]
    pub(crate) lse: bool,
    /// Leaves out the comparison with one rank.
    #[arg(long, help_heading = "With --input")]
    pub(crate) no_check: bool,
}

/// Arguments of `attn doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Prints one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A strategy by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Strategy {
    /// One rank computes alone.
    None,
    /// Ranks exchange sequence for heads.
    Ulysses,
    /// Keys and values go round.
    Ring,
}

impl Strategy {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ulysses => "ulysses",
            Self::Ring => "ring",
        }
    }
}

/// A kernel by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// Blockwise, with an online softmax.
    #[default]
    Flash,
    /// Row by row, in three passes.
    Sdpa,
}

impl Backend {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Flash => "flash",
            Self::Sdpa => "sdpa",
        }
    }
}

/// A mask by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MaskName {
    /// All keys.
    None,
    /// Keys up to the query's own position.
    Causal,
}

impl From<MaskName> for Mask {
    fn from(name: MaskName) -> Self {
        match name {
            MaskName::None => Self::None,
            MaskName::Causal => Self::Causal,
        }
    }
}

/// An element type by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TypeName {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE 754.
    F16,
    /// 16 bits, with the exponent of f32.
    Bf16,
}

impl From<TypeName> for DType {
    fn from(name: TypeName) -> Self {
        match name {
            TypeName::F32 => Self::F32,
            TypeName::F16 => Self::F16,
            TypeName::Bf16 => Self::BF16,
        }
    }
}

/// Where joint tokens stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Side {
    /// Before the others.
    Front,
    /// After them.
    Rear,
}

impl From<Side> for JointStrategy {
    fn from(side: Side) -> Self {
        match side {
            Side::Front => Self::Front,
            Side::Rear => Self::Rear,
        }
    }
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

/// What clap says about a mistake, on one line and without the usage that follows.
fn one_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let said =
        message.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let words: Vec<&str> = said.map(str::trim).filter(|line| !line.is_empty()).collect();
    words.join("; ").replace(":; ", ": ").replace("; [", " [") + " (see `attn --help`)"
}

/// A number of ranks or threads.
fn at_most_1024(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=MAX_RANKS) => Ok(number),
        Ok(number) => Err(format!("{number} is not between 1 and {MAX_RANKS}")),
        Err(_) => Err(format!("expected a number between 1 and {MAX_RANKS}")),
    }
}

/// A softmax scale.
fn scale(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(scale) if scale.is_finite() && scale > 0.0 => Ok(scale),
        Ok(scale) => Err(format!("as a 32-bit float this is {scale}: expected a finite number above 0")),
        Err(_) => Err(String::from("expected a finite number above 0")),
    }
}
