//! Sequence-parallel attention for Rust, chosen at compile time.
//!
//! An attribute on an attention struct of your own gives it a pipeline (reshard, kernel, reshard back) that the
//! compiler builds for one strategy, one kernel, one communicator and one element type. Combinations that cannot work
//! do not compile.
//!
//! ```
//! use attn::prelude::*;
//!
//! /// Any fields you like; the attribute leaves them alone.
//! #[parallel_attention(strategy = "ulysses", scatter = 2, gather = 1, heads = 4, backend = "flash")]
//! struct SelfAttention {
//!     gain: f32,
//! }
//!
//! impl SelfAttention {
//!     /// `x`: this rank's shard, `[batch, seq / ranks, heads, head_dim]`.
//!     fn forward<C>(&self, session: &mut Session<Self, C, f32>, x: &Tensor<f32>) -> attn::Result<Tensor<f32>>
//!     where
//!         C: Communicator<Device = Cpu>,
//!         Self: ParallelAttention<C, f32>, // the one bound: it is generated
//!     {
//!         self.attend(session, x, x, x, &AttentionMetadata::default())
//!     }
//! }
//!
//! fn main() -> attn::Result<()> {
//!     let attention = SelfAttention { gain: 1.0 };
//!     // Four ranks, threads of this process; each holds 8 of 32 positions.
//!     let shapes = World::threads(4).run(|comm| {
//!         let mut session = Session::open(comm)?;
//!         let x = Tensor::from_fn([1, 8, 4, 64], |[_, s, h, d]| (s + h + d) as f32 / 64.0)?;
//!         attention.forward(&mut session, &x).map(|out| out.shape())
//!     })?;
//!     assert_eq!(shapes, [[1, 8, 4, 64]; 4]);
//!     # let _ = attention.gain;
//!     Ok(())
//! }
//! ```
//!
//! | choice | members | where it is made |
//! |---|---|---|
//! | strategy | `"none"`, `"ulysses"`, `"ring"`, `"hybrid"`, `"allgather_kv"`, `"ulysses_allgather"`, `"ulysses_quantised"` (in 8 bits), a [type of your own](ParallelAttentionStrategy), a list to choose from at start-up | the attribute |
//! | kernel | `"sdpa"`, `"flash"`, `"sage"` (in 8 bits, on GPUs), a [type of your own](AttentionKernel) | the attribute |
//! | communicator | threads ([`World::threads`]), processes over TCP ([`World::from_env`]), a [type of your own](Communicator) | what the session is opened on |
//! | device | [`Cpu`], `cuda::Cuda` | the communicator |
//!
//! Feature flags: `sdpa` and `flash` (kernels, both on), `sage` (in 8 bits, for GPUs), `cli` (the program `attn` with all three,
//! on), `cuda` (NVIDIA GPUs of compute capability 8.0 and later; needs nvcc), `sim` (the GPU's kernels on the host, for tests;
//! needs a C++ compiler). Library users who want fewer dependencies say `default-features = false, features = ["flash"]`.

pub use attn_macros::parallel_attention;
#[cfg(feature = "flash")]
pub use attn_runtime::Flash;
#[cfg(feature = "sage")]
pub use attn_runtime::Sage;
#[cfg(feature = "sdpa")]
pub use attn_runtime::Sdpa;
pub use attn_runtime::{
    AllGatherKvParallelAttention, AttentionCall, AttentionKernel, AttentionMask, AttentionMetadata,
    AttentionPipeline, AttentionRequest, AttentionSpec, Band, BlockMask, BlockSegments, CarriedState,
    CarriesState, Clock, Communicator, Cpu, DType, Device, Edge, Edges, Element, Error, ExchangePlan,
    HeadError, HeadLayout, HeadRun, HeadSplitError, HybridParallelAttention, JointStrategy, KeyLengths,
    KeyPlacement, KeyValue, KvGroupError, LseMut, Mask, MaskError, MaskKinds, NoParallelAttention, Outputs,
    ParallelAttention, ParallelAttentionContext, ParallelAttentionStrategy, ParallelConfig, Phases, Pipeline,
    Place, Positions, QuantisedAttention, QuantisedShard, QuantisedTensors, Result, RingLayout,
    RingParallelAttention, RmsNorm, Rope, RopePairs, Run, Scalar, Scope, SegmentIds, Segments, SeqSplitError,
    Sequence, SequenceLayout, Session, Sharding, Shards, Signature, Span, Split, TcpComm, Tensor,
    TensorLayout, ThreadComm, Traffic, Transfer, UlyssesAllGatherParallelAttention, UlyssesParallelAttention,
    UlyssesQuantisedParallelAttention, View, ViewMut, Work, World, build_parallel_attention_strategy,
    portion,
};
pub use attn_runtime::{comm, device, kernel, strategy, tensor};

#[cfg(any(feature = "cuda", feature = "sim"))]
pub mod cuda;

/// What most programs need: `use attn::prelude::*;`.
pub mod prelude {
    pub use crate::{
        AttentionMetadata, Communicator, Cpu, Element, JointStrategy, LseMut, Outputs, ParallelAttention,
        ParallelConfig, RingLayout, Segments, Session, Span, Split, Tensor, View, ViewMut, World,
        parallel_attention,
    };
}

/// What generated code names. Not for use by hand: it changes without notice.
#[doc(hidden)]
pub mod __private {
    pub use attn_runtime::*;
}

/// The README's example, compiled and run as a test.
#[cfg(all(doctest, feature = "flash"))]
#[doc = include_str!("../README.md")]
struct Readme;
