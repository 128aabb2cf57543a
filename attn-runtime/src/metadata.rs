//! What a call may carry besides query, key and value.

use crate::device::{Cpu, Device};
use crate::tensor::Element;
use crate::tensor::{LseMut, Tensor, View, ViewMut};

/// Which keys each query may attend, by global position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mask {
    /// All of them.
    #[default]
    None,
    /// Those up to the query's own position; where there are more keys than queries, or fewer, the last query stands
    /// at the last key.
    Causal,
}

impl Mask {
    /// The mask's name in the attribute and the program.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Causal => "causal",
        }
    }
}

/// Where joint tokens stand in the joint sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum JointStrategy {
    /// Before the sharded tokens.
    #[default]
    Front,
    /// After them.
    Rear,
}

impl JointStrategy {
    /// The name: `front` or `rear`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Front => "front",
            Self::Rear => "rear",
        }
    }

    /// Where `joint` rows and `tokens` others start in their joint sequence.
    pub const fn starts(self, joint: usize, tokens: usize) -> (usize, usize) {
        match self {
            Self::Front => (0, joint),
            Self::Rear => (tokens, 0),
        }
    }
}

/// What a call carries besides query, key and value. The default is nothing.
///
/// Joint tensors are those of a dual-stream transformer's other stream (text, beside the image): replicated, the same
/// on every rank, in the caller's layout, all three or none. Every query then attends the joint sequence, and the
/// output has the joint tokens' rows too: `joint tokens + local tokens` positions in the order of `joint_strategy`,
/// the joint rows bit-equal on every rank.
pub struct AttentionMetadata<'a, T, D = Cpu> {
    /// The mask; if absent, the attribute's, or else none. If the attribute fixes one, this may be no other.
    pub mask: Option<Mask>,
    /// The softmax scale; if absent, the attribute's, or else `1 / sqrt(head_dim)`. If the attribute fixes one, this
    /// may be no other.
    pub scale: Option<f32>,
    /// Queries of the joint tokens.
    pub joint_query: Option<View<'a, T, D>>,
    /// Keys of the joint tokens.
    pub joint_key: Option<View<'a, T, D>>,
    /// Values of the joint tokens.
    pub joint_value: Option<View<'a, T, D>>,
    /// Where the joint tokens stand.
    pub joint_strategy: JointStrategy,
}

impl<T, D> Default for AttentionMetadata<'_, T, D> {
    fn default() -> Self {
        Self {
            mask: None,
            scale: None,
            joint_query: None,
            joint_key: None,
            joint_value: None,
            joint_strategy: JointStrategy::Front,
        }
    }
}

impl<'a, T: Element, D: Device> AttentionMetadata<'a, T, D> {
    /// Metadata with joint tensors.
    pub fn joint(
        query: impl Into<View<'a, T, D>>,
        key: impl Into<View<'a, T, D>>,
        value: impl Into<View<'a, T, D>>,
        strategy: JointStrategy,
    ) -> Self {
        Self {
            joint_query: Some(query.into()),
            joint_key: Some(key.into()),
            joint_value: Some(value.into()),
            joint_strategy: strategy,
            ..Self::default()
        }
    }

    /// Sets the mask.
    #[must_use]
    pub const fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Sets the softmax scale.
    #[must_use]
    pub const fn with_scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }
}

impl<T, D> core::fmt::Debug for AttentionMetadata<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AttentionMetadata")
            .field("mask", &self.mask)
            .field("joint_query", &self.joint_query)
            .field("joint_strategy", &self.joint_strategy)
            .finish_non_exhaustive()
    }
}

/// Where a call writes: the output, in the caller's layout, and the log-sum-exp if it is wanted.
pub struct Outputs<'a, T, D = Cpu> {
    /// As large as the query; with joint tensors, longer by their positions.
    pub out: ViewMut<'a, T, D>,
    /// `[batch, heads, seq]` of `out`'s positions, fp32, natural logarithm, in every layout.
    pub lse: Option<LseMut<'a, D>>,
}

impl<'a, T: Element, D: Device> Outputs<'a, T, D> {
    /// The output alone.
    pub fn new(out: impl Into<ViewMut<'a, T, D>>) -> Self {
        Self { out: out.into(), lse: None }
    }

    /// Asks for the log-sum-exp too.
    #[must_use]
    pub fn with_lse(self, lse: LseMut<'a, D>) -> Self {
        Self { lse: Some(lse), ..self }
    }
}

impl<'a, T: Element, D: Device> From<&'a mut Tensor<T, D>> for Outputs<'a, T, D> {
    fn from(out: &'a mut Tensor<T, D>) -> Self {
        Self::new(out)
    }
}

impl<'a, T: Element, D: Device> From<ViewMut<'a, T, D>> for Outputs<'a, T, D> {
    fn from(out: ViewMut<'a, T, D>) -> Self {
        Self::new(out)
    }
}

impl<T, D> core::fmt::Debug for Outputs<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Outputs").field("out", &self.out).field("lse", &self.lse).finish()
    }
}
