//! The runtime of the crate `attn`: sequence-parallel attention on four axes that know nothing of each other.
//!
//! | axis | trait | members |
//! |---|---|---|
//! | strategy | [`ParallelAttentionStrategy`] | [`NoParallelAttention`], [`UlyssesParallelAttention`], [`RingParallelAttention`], [`HybridParallelAttention`], [`AllGatherKvParallelAttention`], [`UlyssesAllGatherParallelAttention`], [`UlyssesQuantisedParallelAttention`] |
//! | kernel | [`AttentionKernel`], [`CarriesState`], [`QuantisedAttention`] | `Sdpa`, `Flash`, `Sage` |
//! | communicator | [`Communicator`] | [`ThreadComm`], [`TcpComm`] |
//! | device | [`Device`] | [`Cpu`] |
//!
//! A [`Session`] puts one of each together, for one element type, and the compiler builds that pipeline alone.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod comm;
pub mod device;
mod edges;
mod error;
pub mod kernel;
mod masks;
mod metadata;
mod pipeline;
mod session;
mod spec;
pub mod strategy;
pub mod tensor;

pub use attn_plan::{
    HeadError, HeadLayout, HeadRun, HeadSplitError, KvGroupError, Mask, MaskError, MaskKinds, Positions,
    RingLayout, Run, SeqSplitError, SequenceLayout, Sharding, Span, Split, portion,
};
pub use comm::tcp::TcpComm;
pub use comm::{Communicator, ExchangePlan, Place, Signature, ThreadComm, Traffic, Transfer, World};
pub use device::{Arena, Cpu, Device, RopePairs, Scope};
pub use edges::{Edge, Edges, RmsNorm, Rope};
pub use error::{Error, Result};
#[cfg(feature = "flash")]
pub use kernel::Flash;
#[cfg(feature = "sage")]
pub use kernel::Sage;
#[cfg(feature = "sdpa")]
pub use kernel::Sdpa;
pub use kernel::{
    AttentionCall, AttentionKernel, Band, BlockMask, BlockSegments, CarriedState, CarriesState, KeyLengths,
    QuantisedAttention, QuantisedShard, QuantisedTensors, SegmentIds, Shards,
};
pub use metadata::{AttentionMetadata, JointStrategy, KeyPlacement, Outputs, Segments, Sequence};
#[doc(hidden)]
pub use pipeline::Unbuilt;
pub use pipeline::{AttentionPipeline, Clock, Phases, Pipeline, Work, build_parallel_attention_strategy};
pub use session::{ParallelAttention, Session};
pub use spec::AttentionSpec;
pub use strategy::{
    AllGatherKvParallelAttention, AttentionMask, AttentionRequest, HybridParallelAttention,
    NoParallelAttention, ParallelAttentionContext, ParallelAttentionStrategy, ParallelConfig,
    RingParallelAttention, UlyssesAllGatherParallelAttention, UlyssesParallelAttention,
    UlyssesQuantisedParallelAttention,
};
pub use tensor::{DType, Element, KeyValue, LseMut, Scalar, Tensor, TensorLayout, View, ViewMut};
