//! What a call may carry besides query, key and value.

use attn_plan::{Mask, Span};

use crate::device::{Cpu, Device};
use crate::edges::Edges;
use crate::tensor::Element;
use crate::tensor::{LseMut, Tensor, View, ViewMut};

/// Packed documents: the segment of each position. A query attends keys of its own segment alone, in whatever order the
/// segments stand.
///
/// Rows of the batch one after the other, positions in natural order: global, the same on every rank, in every layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments<'a> {
    /// `[batch, seq_q]`.
    pub query: &'a [i32],
    /// `[batch, seq_k]`.
    pub key: &'a [i32],
}

impl<'a> Segments<'a> {
    /// Queries and keys of one sequence.
    pub const fn of(segments: &'a [i32]) -> Self {
        Self { query: segments, key: segments }
    }
}

/// The lengths of whole sequences, over all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sequence {
    /// Positions of the query.
    pub query: usize,
    /// Positions of key and value.
    pub key: usize,
}

/// Where keys and values are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyPlacement {
    /// Every rank holds its share, as of the queries.
    #[default]
    Sharded,
    /// Every rank holds all of them, in natural order: the same on every rank.
    Replicated,
}

impl KeyPlacement {
    /// The name: `sharded` or `replicated`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sharded => "sharded",
            Self::Replicated => "replicated",
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
/// A key is attended if every mask allows it: the span, the key lengths, the segments and the dense mask, of which each is
/// optional. Masks speak of the whole sequence, in natural order, and are the same on every rank, whatever the strategy
/// and the layout. A query that may attend no key gets zeros, and an LSE of -inf.
///
/// Joint tensors are those of a dual-stream transformer's other stream (text, beside the image): replicated, the same
/// on every rank, in the caller's layout, all three or none. Every query then attends the joint sequence, and the
/// output has the joint tokens' rows too: `joint tokens + local tokens` positions in the order of `joint_strategy`,
/// the joint rows bit-equal on every rank. With them go key lengths (of the other keys: joint ones all count) and dense
/// masks, but no span and no segments.
pub struct AttentionMetadata<'a, T, D: Device = Cpu> {
    /// The mask by position; if absent, the attribute's, or else full. If the attribute fixes one, this may be no other.
    pub span: Option<Span>,
    /// For each row of the batch, how many keys there are; those behind them are padding, and never read.
    pub key_lengths: Option<&'a [usize]>,
    /// Packed documents.
    pub segments: Option<Segments<'a>>,
    /// `[batch, 1 or heads, joint + seq_q, joint + seq_k]`, joint tokens in their order: what is not zero is attended.
    pub dense: Option<View<'a, u8, D>>,
    /// The lengths of the whole sequences. An uneven split needs them, for it cannot tell them from a shard; otherwise
    /// they may be left out.
    pub sequence: Option<Sequence>,
    /// Where keys and values are.
    pub keys: KeyPlacement,
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
    /// What is done to queries and keys on their way: RMSNorm, rotary embedding.
    pub edges: Option<&'a Edges<'a, T, D>>,
}

impl<T, D: Device> Default for AttentionMetadata<'_, T, D> {
    #[inline]
    fn default() -> Self {
        Self {
            span: None,
            key_lengths: None,
            segments: None,
            dense: None,
            sequence: None,
            keys: KeyPlacement::Sharded,
            scale: None,
            joint_query: None,
            joint_key: None,
            joint_value: None,
            joint_strategy: JointStrategy::Front,
            edges: None,
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

    /// Sets the mask by position.
    #[must_use]
    pub const fn with_span(mut self, span: Span) -> Self {
        self.span = Some(span);
        self
    }

    /// Sets the causal mask.
    #[must_use]
    pub const fn with_causal(self) -> Self {
        self.with_span(Span::Causal)
    }

    /// Sets the number of keys of each row of the batch.
    #[must_use]
    pub const fn with_key_lengths(mut self, key_lengths: &'a [usize]) -> Self {
        self.key_lengths = Some(key_lengths);
        self
    }

    /// Sets the segments.
    #[must_use]
    pub const fn with_segments(mut self, segments: Segments<'a>) -> Self {
        self.segments = Some(segments);
        self
    }

    /// Sets the dense mask.
    #[must_use]
    pub fn with_dense(mut self, dense: impl Into<View<'a, u8, D>>) -> Self {
        self.dense = Some(dense.into());
        self
    }

    /// Tells the lengths of the whole sequences.
    #[must_use]
    pub const fn with_sequence(mut self, query: usize, key: usize) -> Self {
        self.sequence = Some(Sequence { query, key });
        self
    }

    /// Says that keys and values are the whole sequence's, on every rank.
    #[must_use]
    pub const fn with_replicated_keys(mut self) -> Self {
        self.keys = KeyPlacement::Replicated;
        self
    }

    /// Says what is done to queries and keys on their way.
    #[must_use]
    pub const fn with_edges(mut self, edges: &'a Edges<'a, T, D>) -> Self {
        self.edges = Some(edges);
        self
    }

    /// Sets the softmax scale.
    #[must_use]
    pub const fn with_scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }
}

impl<T, D: Device> AttentionMetadata<'_, T, D> {
    /// Which masks there are.
    #[inline]
    pub fn mask(&self) -> Mask {
        Mask {
            span: self.span.unwrap_or_default(),
            key_lengths: self.key_lengths.is_some(),
            segments: self.segments.is_some(),
            dense: self.dense.is_some(),
        }
    }
}

impl<T, D: Device> core::fmt::Debug for AttentionMetadata<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AttentionMetadata")
            .field("mask", &self.mask())
            .field("sequence", &self.sequence)
            .field("keys", &self.keys)
            .field("joint_query", &self.joint_query)
            .field("joint_strategy", &self.joint_strategy)
            .field("edges", &self.edges)
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
