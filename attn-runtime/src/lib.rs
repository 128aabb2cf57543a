//! The runtime of the crate `attn`: sequence-parallel attention on four axes that know nothing of each other.
//!
//! | axis | trait | members |
//! |---|---|---|
//! | strategy | [`ParallelAttentionStrategy`] | [`NoParallelAttention`], [`UlyssesParallelAttention`], [`RingParallelAttention`] |
//! | kernel | [`AttentionKernel`], [`CarriesState`] | `Sdpa`, `Flash` |
//! | communicator | [`Communicator`] | [`ThreadComm`] |
//! | device | [`Device`] | [`Cpu`] |
//!
//! A [`Session`] puts one of each together, for one element type, and the compiler builds that pipeline alone.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod comm;
pub mod device;
mod error;
pub mod kernel;
mod metadata;
mod pipeline;
mod sequence;
mod session;
mod spec;
pub mod strategy;
pub mod tensor;

pub use comm::{Communicator, ExchangePlan, Signature, ThreadComm, Traffic, Transfer, World};
pub use device::{Arena, Cpu, Device, Scope};
pub use error::{Error, Result};
#[cfg(feature = "flash")]
pub use kernel::Flash;
#[cfg(feature = "sdpa")]
pub use kernel::Sdpa;
pub use kernel::{AttentionCall, AttentionKernel, Band, CarriedState, CarriesState};
pub use metadata::{AttentionMetadata, JointStrategy, Mask, Outputs};
#[doc(hidden)]
pub use pipeline::Unbuilt;
pub use pipeline::{AttentionPipeline, Clock, Phases, Pipeline, build_parallel_attention_strategy};
pub use sequence::SequenceLayout;
pub use session::{ParallelAttention, Session};
pub use spec::AttentionSpec;
pub use strategy::{
    AttentionRequest, NoParallelAttention, ParallelAttentionContext, ParallelAttentionStrategy,
    ParallelConfig, RingParallelAttention, UlyssesParallelAttention,
};
pub use tensor::{DType, Element, KeyValue, LseMut, Tensor, TensorLayout, View, ViewMut};
