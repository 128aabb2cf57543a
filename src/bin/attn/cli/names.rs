//! What the command line calls things.

use attn::{DType, JointStrategy, KeyPlacement, RingLayout, Split};
use clap::ValueEnum;

/// A strategy by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Strategy {
    /// One rank computes alone.
    None,
    /// Ranks exchange sequence for heads.
    Ulysses,
    /// Keys and values go round.
    Ring,
    /// Ulysses among neighbours, a ring of such groups.
    Hybrid,
    /// Every rank gets all keys and values.
    AllgatherKv,
    /// Ulysses among neighbours, and such groups get each other's keys and values.
    UlyssesAllgather,
    /// Ulysses for `--backend sage`, which rounds to 8 bits before the exchange.
    UlyssesQuantised,
}

impl Strategy {
    /// Every strategy that goes with any kernel.
    pub(crate) const ALL: [Self; 6] =
        [Self::None, Self::Ulysses, Self::Ring, Self::Hybrid, Self::AllgatherKv, Self::UlyssesAllgather];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ulysses => "ulysses",
            Self::Ring => "ring",
            Self::Hybrid => "hybrid",
            Self::AllgatherKv => "allgather_kv",
            Self::UlyssesAllgather => "ulysses_allgather",
            Self::UlyssesQuantised => "ulysses_quantised",
        }
    }

    /// The degrees it has, whose product is its number of ranks: neighbours first.
    pub(crate) const fn degrees(self) -> &'static [Degree] {
        match self {
            Self::None => &[],
            Self::Ulysses | Self::UlyssesQuantised => &[Degree::Ulysses],
            Self::Ring => &[Degree::Ring],
            Self::Hybrid => &[Degree::Ulysses, Degree::Ring],
            Self::AllgatherKv => &[Degree::Allgather],
            Self::UlyssesAllgather => &[Degree::Ulysses, Degree::Allgather],
        }
    }

    /// Whether it has a ring, which may share the sequence in several orders.
    pub(crate) fn has_layout(self) -> bool {
        self.degrees().contains(&Degree::Ring)
    }
}

/// How many ranks do what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Degree {
    /// Share the heads.
    Ulysses,
    /// Stand in a ring.
    Ring,
    /// Gather each other's keys.
    Allgather,
}

impl Degree {
    /// Every degree.
    pub(crate) const ALL: [Self; 3] = [Self::Ulysses, Self::Ring, Self::Allgather];

    /// How it is asked for.
    pub(crate) const fn flag(self) -> &'static str {
        match self {
            Self::Ulysses => "--ulysses",
            Self::Ring => "--ring",
            Self::Allgather => "--allgather",
        }
    }
}

/// The order in which a ring shares the sequence, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutName {
    /// Each rank one stretch.
    Contiguous,
    /// Each rank a stretch from the front and one from the back.
    Zigzag,
    /// Positions in turn.
    Striped,
}

impl From<LayoutName> for RingLayout {
    fn from(name: LayoutName) -> Self {
        match name {
            LayoutName::Contiguous => Self::Contiguous,
            LayoutName::Zigzag => Self::Zigzag,
            LayoutName::Striped => Self::Striped,
        }
    }
}

/// Whether shares must be equal, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SplitName {
    /// They must.
    Strict,
    /// They may differ, and be empty.
    Uneven,
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Strict => Self::Strict,
            SplitName::Uneven => Self::Uneven,
        }
    }
}

/// Where keys and values are, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Placement {
    /// Each rank has its share.
    Sharded,
    /// Each rank has all.
    Replicated,
}

impl From<Placement> for KeyPlacement {
    fn from(name: Placement) -> Self {
        match name {
            Placement::Sharded => Self::Sharded,
            Placement::Replicated => Self::Replicated,
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
    /// In 8 bits, on a GPU.
    Sage,
}

impl Backend {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Flash => "flash",
            Self::Sdpa => "sdpa",
            Self::Sage => "sage",
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

/// Who carries the ranks, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CommName {
    /// Threads of this process.
    #[default]
    Threads,
    /// Processes that talk over TCP.
    Tcp,
    /// Processes that talk over MPI.
    Mpi,
    /// Processes that have a GPU each, over NCCL.
    Nccl,
}

impl CommName {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Tcp => "tcp",
            Self::Mpi => "mpi",
            Self::Nccl => "nccl",
        }
    }
}

/// A device by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceName {
    /// The host processor.
    #[default]
    Cpu,
    /// One NVIDIA GPU; ranks are streams of it.
    Cuda,
}

impl DeviceName {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Which of the GPU's kernels, and how its warpgroups share the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// What is known to suit the shape.
    #[default]
    Auto,
    /// One product after the other.
    Simple,
    /// The softmax of one block of keys while the tensor cores work on another.
    Overlapped,
    /// The kernel for cards other than Hopper's, which runs on these too.
    Sm80,
}

impl Form {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Simple => "simple",
            Self::Overlapped => "overlapped",
            Self::Sm80 => "sm80",
        }
    }
}
