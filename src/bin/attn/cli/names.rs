//! What the command line calls things.

use attn::{DType, JointStrategy, Mask};
use clap::ValueEnum;

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

/// How the warpgroups of the GPU's kernel share the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// What is known to suit the shape.
    #[default]
    Auto,
    /// One product after the other.
    Simple,
    /// The softmax of one block of keys while the tensor cores work on another.
    Overlapped,
}

impl Form {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Simple => "simple",
            Self::Overlapped => "overlapped",
        }
    }
}
