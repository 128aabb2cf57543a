//! Kernels: softmax(Q K^T * scale) V on one device. A kernel never communicates and knows of no strategy.

mod band;
mod mask;
mod quantised;
mod state;

pub mod cpu;

pub use band::{Band, Cover};
pub use mask::{BlockMask, BlockSegments, KeyLengths, SegmentIds};
pub use quantised::{QuantisedAttention, QuantisedShard, QuantisedTensors, Shards};
pub use state::CarriedState;

use attn_plan::MaskKinds;

use crate::device::{Device, Scope};
use crate::error::Result;
use crate::tensor::{Element, KeyValue, View, ViewMut};

/// One kernel call: tensors on one device, axes `[batch, seq, heads, head_dim]`.
///
/// Query head `h` attends with key and value head `h / (heads / kv_heads)`.
pub struct AttentionCall<'a, T, D: Device> {
    /// `[batch, seq_q, heads, head_dim]`.
    pub query: View<'a, T, D>,
    /// Two of `[batch, seq_k, kv_heads, head_dim]`.
    pub kv: KeyValue<'a, T, D>,
    /// Which keys a query may attend.
    pub mask: BlockMask<'a, D>,
    /// What the products of queries and keys are multiplied with.
    pub scale: f32,
    /// `[batch, seq_q, heads, head_dim]`.
    pub out: ViewMut<'a, T, D>,
    /// Log-sum-exp of each row, natural logarithm: `[batch, seq_q, heads, 1]`.
    pub lse: Option<ViewMut<'a, f32, D>>,
}

/// Softmax attention on device `D` for elements `T`.
///
/// The caller has checked the shapes: batch and head_dim agree, `kv_heads` divides `heads`, keys and values have one
/// shape, the outputs are as large as the query; a kernel called with other shapes may panic. A query that may attend no
/// key gets zeros and an LSE of -inf; so does one whose products are all -inf, since such a product weighs nothing. A NaN
/// among the values that a query attends reaches its output, and no other query's. (On tensor cores it may reach queries
/// that attend another key of the same block, since they multiply it by a weight of zero.)
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no attention kernel for this device and element type",
    label = "does not implement `AttentionKernel<{D}, {T}>`",
    note = "the kernel's device must be the communicator's `Device`: a CPU kernel cannot run under a communicator of another device"
)]
pub trait AttentionKernel<D: Device, T: Element> {
    /// Which masks the kernel takes. A call with another one is refused before anything moves. Full attention it always
    /// takes; a kernel that says nothing here takes masks by position, and need look at [`BlockMask::band`] alone.
    const MASKS: MaskKinds = MaskKinds::SPAN;

    /// Computes one call.
    ///
    /// # Errors
    /// If the kernel cannot do what is asked, or the device reports an error.
    fn forward(&self, scope: Scope<'_, D>, call: &mut AttentionCall<'_, T, D>) -> Result<()>;
}

/// A kernel that can go on from a partial result: what ring needs of it.
///
/// The state of a row is what FlashAttention carries (Dao et al. 2022, algorithm 1): the largest scaled product so
/// far, the sum of the exponentials relative to it, and the output not yet divided by that sum, all in fp32. A ring
/// hop is one more [`step`](Self::step) on the same state; the division and the cast to the output type happen once,
/// in [`finish`](Self::finish).
#[diagnostic::on_unimplemented(
    message = "kernel `{Self}` cannot carry its state from hop to hop",
    label = "does not implement `CarriesState<{D}, {T}>`, which this strategy needs",
    note = "use `flash` or `sdpa`, or a strategy that calls the kernel once, such as `ulysses`"
)]
pub trait CarriesState<D: Device, T: Element>: AttentionKernel<D, T> {
    /// Takes one more block of keys into the state. The mask speaks of the block's own indices.
    ///
    /// # Errors
    /// As [`AttentionKernel::forward`].
    fn step(
        &self,
        scope: Scope<'_, D>,
        query: View<'_, T, D>,
        kv: KeyValue<'_, T, D>,
        mask: &BlockMask<'_, D>,
        scale: f32,
        state: &mut CarriedState<'_, D>,
    ) -> Result<()>;

    /// Divides, casts and writes the output and, if asked, the log-sum-exp.
    ///
    /// # Errors
    /// If the device reports one.
    fn finish(
        &self,
        scope: Scope<'_, D>,
        state: CarriedState<'_, D>,
        out: ViewMut<'_, T, D>,
        lse: Option<ViewMut<'_, f32, D>>,
    ) -> Result<()>;

    /// Takes the memory for the state of `[batch, seq_q, heads, head_dim]` queries and marks every row as having
    /// attended nothing.
    ///
    /// # Errors
    /// If the memory cannot be had.
    fn begin<'a>(&self, scope: Scope<'a, D>, query: [usize; 4]) -> Result<CarriedState<'a, D>>;
}

impl<D: Device, T: Element, K: AttentionKernel<D, T>> AttentionKernel<D, T> for &K {
    const MASKS: MaskKinds = K::MASKS;

    #[inline]
    fn forward(&self, scope: Scope<'_, D>, call: &mut AttentionCall<'_, T, D>) -> Result<()> {
        (**self).forward(scope, call)
    }
}

#[diagnostic::do_not_recommend]
impl<D: Device, T: Element, K: CarriesState<D, T>> CarriesState<D, T> for &K {
    #[inline]
    fn step(
        &self,
        scope: Scope<'_, D>,
        query: View<'_, T, D>,
        kv: KeyValue<'_, T, D>,
        mask: &BlockMask<'_, D>,
        scale: f32,
        state: &mut CarriedState<'_, D>,
    ) -> Result<()> {
        (**self).step(scope, query, kv, mask, scale, state)
    }

    #[inline]
    fn finish(
        &self,
        scope: Scope<'_, D>,
        state: CarriedState<'_, D>,
        out: ViewMut<'_, T, D>,
        lse: Option<ViewMut<'_, f32, D>>,
    ) -> Result<()> {
        (**self).finish(scope, state, out, lse)
    }

    #[inline]
    fn begin<'a>(&self, scope: Scope<'a, D>, query: [usize; 4]) -> Result<CarriedState<'a, D>> {
        (**self).begin(scope, query)
    }
}

/// Plain attention: every product of a row, then its softmax, then its output. Exact exponentials; any mask.
#[cfg(feature = "sdpa")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sdpa;

/// Attention in 8 bits (Zhang et al. 2024, SageAttention): faster where a GPU multiplies 8 bits faster than 16, and less
/// accurate. For GPUs alone.
#[cfg(feature = "sage")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sage;

/// Tiled attention with online softmax: blocks of keys that no query of a tile may attend are skipped.
#[cfg(feature = "flash")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Flash;
