//! What each command takes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use attn::{Mask, RingLayout, Split};
use clap::Args;

use super::names::{
    Backend, CommName, Degree, DeviceName, Form, LayoutName, Placement, Side, SplitName, Strategy, TypeName,
};
use super::values::{at_most_1024, deadline, mask, positive, rate, runs, scale, seconds, shape, warmup};

/// Over the options that the bundled model does not take, and made-up tensors do.
const WITH_TENSORS: &str = "With --input, or --device cuda";

/// Over those that say who computes what.
const SHARING: &str = "How ranks share the work";

/// How ranks share the work.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct SharingArgs {
    /// How many ranks share the heads, in strategies that exchange them.
    ///
    /// The product of a strategy's degrees is its number of ranks: --ranks may be left out if they are given. If it is
    /// given, one of two degrees follows from the other, and without either the program chooses them as equal as can be.
    #[arg(long, value_name = "N", value_parser = at_most_1024, help_heading = SHARING)]
    ulysses: Option<usize>,
    /// How many ranks stand in a ring, in strategies that have one.
    #[arg(long, value_name = "N", value_parser = at_most_1024, help_heading = SHARING)]
    ring: Option<usize>,
    /// How many ranks gather each other's keys, in strategies that do so.
    #[arg(long, value_name = "N", value_parser = at_most_1024, help_heading = SHARING)]
    allgather: Option<usize>,
    /// In which order rings share the sequence [default: contiguous].
    #[arg(long, value_name = "NAME", help_heading = SHARING)]
    layout: Option<LayoutName>,
    /// Whether all ranks must have equal shares of positions and heads [default: strict].
    #[arg(long, value_name = "NAME", help_heading = SHARING)]
    split: Option<SplitName>,
}

impl SharingArgs {
    /// A degree, if it is given.
    pub(crate) const fn degree(&self, degree: Degree) -> Option<usize> {
        match degree {
            Degree::Ulysses => self.ulysses,
            Degree::Ring => self.ring,
            Degree::Allgather => self.allgather,
        }
    }

    pub(crate) fn layout(&self) -> RingLayout {
        self.layout.map(RingLayout::from).unwrap_or_default()
    }

    pub(crate) fn split(&self) -> Split {
        self.split.map(Split::from).unwrap_or_default()
    }
}

/// Arguments of `attn run`.
#[derive(Args, Debug, Default)]
pub(crate) struct RunArgs {
    /// A safetensors file with the tensors `q`, `k` and `v`; without it, the bundled model runs, or on cuda made-up
    /// tensors.
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Where to write: with --input, a safetensors file with `out`; without, the picture [default: digits.png].
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Strategies to run, one or several [default: none with --input, else all].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) strategy: Vec<Strategy>,
    /// Numbers of ranks to run them on, one or several [default: what the degrees make; else 1 with --input, and 2,4 or
    /// 4 without; with --comm other than threads as many as there are].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = at_most_1024)]
    pub(crate) ranks: Vec<usize>,
    #[command(flatten)]
    pub(crate) sharing: SharingArgs,
    /// The kernel.
    #[arg(long, value_name = "NAME", default_value = "flash")]
    pub(crate) backend: Backend,
    /// Where to compute.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub(crate) device: DeviceName,
    /// Who carries the ranks: threads of this process, or processes, of which this is one.
    #[arg(long, value_name = "NAME", default_value = "threads")]
    pub(crate) comm: CommName,
    /// How long a rank waits for the others in one exchange [default: an hour; with --comm other than threads
    /// ATTN_DEADLINE, or else five minutes].
    #[arg(long, value_name = "SECONDS", value_parser = deadline)]
    pub(crate) deadline: Option<Duration>,
    /// Threads for each rank's kernel [default: the cores, divided by the ranks of the machine].
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
    /// Which keys a query may attend [default: none]: none, causal, window:LEFT,RIGHT, and with --input padding, segments,
    /// dense, or several of them joined by `+`.
    ///
    /// `padding` reads the tensor `key_lengths` of the file (I64, [batch]), `segments` the tensor `segments` (I32,
    /// [batch, seq]), `dense` the tensor `mask` (U8 or BOOL, [batch, 1 or heads, seq of queries, seq of keys], joint
    /// tokens included; what is not zero is attended): in these shapes in every layout.
    #[arg(long, value_name = "MASK", value_parser = mask, help_heading = WITH_TENSORS)]
    pub(crate) mask: Option<Mask>,
    /// Whether each rank has its share of keys and values, or all of them [default: sharded].
    #[arg(long, value_name = "NAME", help_heading = WITH_TENSORS)]
    pub(crate) keys: Option<Placement>,
    /// The type to compute in [default: the file's].
    #[arg(long, value_name = "TYPE", help_heading = WITH_TENSORS)]
    pub(crate) dtype: Option<TypeName>,
    /// What the scores are multiplied by [default: 1 / sqrt(head_dim)].
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = scale, help_heading = WITH_TENSORS)]
    pub(crate) scale: Option<f32>,
    /// Where the file's joint tensors stand in the joint sequence.
    #[arg(long, value_name = "WHERE", help_heading = "With --input")]
    pub(crate) joint: Option<Side>,
    /// Writes the log-sum-exp of each row too.
    #[arg(long, help_heading = "With --input")]
    pub(crate) lse: bool,
    /// Leaves out the comparison with one rank.
    #[arg(long, help_heading = WITH_TENSORS)]
    pub(crate) no_check: bool,
}

/// Arguments of `attn bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// The whole problem: batch,seq,heads,head_dim, where the ranks share seq [default: 1,2048,8,64, on cuda
    /// 1,4096,16,128].
    #[arg(long, value_name = "B,S,H,D", value_parser = shape)]
    pub(crate) shape: Option<[usize; 4]>,
    /// Positions of keys and values [default: as many as of queries].
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) seq_k: Option<usize>,
    /// Heads of keys and values [default: as many as of queries].
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) kv_heads: Option<usize>,
    /// The type of the tensors [default: f32, on cuda bf16].
    #[arg(long, value_name = "TYPE")]
    pub(crate) dtype: Option<TypeName>,
    /// The kernel.
    #[arg(long, value_name = "NAME", default_value = "flash")]
    pub(crate) backend: Backend,
    /// Which keys a query may attend: none, causal or window:LEFT,RIGHT.
    #[arg(long, value_name = "MASK", default_value = "none", value_parser = mask)]
    pub(crate) mask: Mask,
    /// Strategies to measure, one or several.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "none")]
    pub(crate) strategy: Vec<Strategy>,
    /// Numbers of ranks to measure them on, one or several [default: what the degrees make, or 1].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = at_most_1024)]
    pub(crate) ranks: Vec<usize>,
    #[command(flatten)]
    pub(crate) sharing: SharingArgs,
    /// Threads for each rank's kernel [default: the cores, divided by the ranks].
    #[arg(long, value_name = "N", value_parser = at_most_1024)]
    pub(crate) threads: Option<usize>,
    /// Where to compute.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub(crate) device: DeviceName,
    /// Which of the GPU's kernels, and how its warpgroups share the work [default: auto].
    #[arg(long, value_name = "NAME")]
    pub(crate) form: Option<Form>,
    /// Measures every kernel that `flash` can be on the GPU, and writes which is fastest to this table, row by row: for --shape
    /// and --mask, or without a shape for many. Calls go by the table that the variable ATTN_TUNING names.
    #[arg(long, value_name = "FILE")]
    pub(crate) tune: Option<PathBuf>,
    /// How many times to measure.
    #[arg(long, value_name = "N", default_value = "7", value_parser = runs)]
    pub(crate) runs: usize,
    /// How many times to run before that [default: 2, on cuda 10].
    #[arg(long, value_name = "N", value_parser = warmup)]
    pub(crate) warmup: Option<usize>,
    /// What the device does in a large matrix product of this type, in TFLOP/s: attention's floor [default: on cuda
    /// measured, on the tensor cores alone].
    #[arg(long, value_name = "X", value_parser = rate)]
    pub(crate) gemm_tflops: Option<f64>,
    /// Prints a JSON object for each row instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `attn doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Prints one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `attn launch`.
#[derive(Args, Debug)]
pub(crate) struct LaunchArgs {
    /// How many ranks to start [default: as many as --hosts has places].
    #[arg(short = 'n', long, value_name = "N", value_parser = at_most_1024)]
    pub(crate) ranks: Option<usize>,
    /// Hosts to start them on, in this order, each with its number of places [default: this machine, with any number].
    ///
    /// `localhost` is this machine; others are reached by ssh without a password, and have `attn`, the program and the
    /// present folder where they are here. Variables that begin with ATTN_ and NCCL_ go with the ranks.
    #[arg(long, value_name = "HOST[:PLACES],..")]
    pub(crate) hosts: Option<String>,
    /// Where the ranks meet: a name or address of rank 0's host [default: 127.0.0.1, with --hosts the first one's name].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) master_addr: Option<String>,
    /// The port at which they meet [default: one that is free there].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) master_port: Option<u16>,
    /// A variable for the ranks; without a value, with the one that it has here. Once for each.
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// The command that reaches another host, its words separated by spaces [default: ATTN_RSH, or else ssh -o
    /// BatchMode=yes].
    #[arg(long, value_name = "COMMAND")]
    pub(crate) rsh: Option<String>,
    /// Where this program is on other hosts [default: where it is here].
    #[arg(long, value_name = "PATH")]
    pub(crate) attn: Option<PathBuf>,
    /// How long the others may go on after a rank has failed.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub(crate) grace: Duration,
    /// Prints what ranks print without their numbers before it.
    #[arg(long)]
    pub(crate) no_prefix: bool,
    /// The program, and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub(crate) command: Vec<OsString>,
}

/// Arguments of `attn launch-rank`.
#[derive(Args, Debug)]
pub(crate) struct RankArgs {
    /// The process whose end is this one's too.
    #[arg(long)]
    pub(crate) keeper: u32,
    /// The program, and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}
