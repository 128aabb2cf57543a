//! What a strategy is given: one rank's call, checked, its axes in `[batch, seq, heads, head_dim]` order.

use crate::comm::Signature;
use crate::kernel::Band;
use crate::metadata::{JointStrategy, Mask};
use crate::tensor::{Element, KeyValue, View, ViewMut};

/// One rank's call. Shapes agree with one another; no axis is empty.
pub struct AttentionRequest<'a, T, D> {
    /// This rank's queries: `[batch, seq_q / ranks, heads, head_dim]`.
    pub query: View<'a, T, D>,
    /// This rank's keys and values: `[batch, seq_k / ranks, kv_heads, head_dim]`.
    pub kv: KeyValue<'a, T, D>,
    /// The joint tokens.
    pub joint: Option<Joint<'a, T, D>>,
    /// The mask, over global positions. None if there are joint tokens.
    pub mask: Mask,
    /// Softmax scale.
    pub scale: f32,
    /// This rank's output: `[batch, joint tokens + seq_q / ranks, heads, head_dim]`, in the joint order.
    pub out: ViewMut<'a, T, D>,
    /// Log-sum-exp of the output's rows: `[batch, joint tokens + seq_q / ranks, heads, 1]`.
    pub lse: Option<ViewMut<'a, f32, D>>,
}

/// Tokens that every rank holds in full: `[batch, joint tokens, heads or kv_heads, head_dim]`.
pub struct Joint<'a, T, D> {
    /// Their queries.
    pub query: View<'a, T, D>,
    /// Their keys and values.
    pub kv: KeyValue<'a, T, D>,
    /// Where they stand in the joint sequence.
    pub order: JointStrategy,
}

impl<T, D> Clone for Joint<'_, T, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, D> Copy for Joint<'_, T, D> {}

impl<T: Element, D> AttentionRequest<'_, T, D> {
    /// How many joint tokens there are.
    pub fn joint_tokens(&self) -> usize {
        self.joint.as_ref().map_or(0, |joint| joint.query.shape()[1])
    }

    /// Where the joint tokens stand. Without any, it does not matter.
    pub fn joint_strategy(&self) -> JointStrategy {
        self.joint.as_ref().map_or(JointStrategy::Front, |joint| joint.order)
    }

    /// The mask as a band over the whole sequence, which has `ranks` times this rank's positions.
    pub const fn band(&self, ranks: usize) -> Band {
        match self.mask {
            Mask::None => Band::FULL,
            Mask::Causal => Band::causal(self.query.shape()[1] * ranks, self.kv.key.shape()[1] * ranks),
        }
    }

    /// What the ranks compare.
    pub fn signature(&self, strategy: &'static str, stage: &'static str) -> Signature {
        Signature {
            strategy,
            stage,
            dtype: T::DTYPE,
            query: self.query.shape(),
            key: self.kv.key.shape(),
            joint: (self.joint_tokens(), self.joint_strategy()),
            mask: self.mask,
            scale_bits: self.scale.to_bits(),
        }
    }
}

impl<T, D> core::fmt::Debug for AttentionRequest<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AttentionRequest")
            .field("query", &self.query)
            .field("kv", &self.kv)
            .field("mask", &self.mask)
            .finish_non_exhaustive()
    }
}

impl<T, D> core::fmt::Debug for Joint<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Joint")
            .field("query", &self.query)
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}
