//! What a strategy is given: one rank's call, checked, its axes in `[batch, seq, heads, head_dim]` order.

use attn_plan::{Mask, Run, Sharding, Span};

use crate::comm::Signature;
use crate::device::{Device, Scope};
use crate::edges::Edges;
use crate::error::{Error, Result};
use crate::kernel::{Band, BlockMask, BlockSegments, KeyLengths, SegmentIds};
use crate::metadata::{JointStrategy, KeyPlacement, Segments, Sequence};
use crate::tensor::{Element, KeyValue, View, ViewMut};

/// One rank's call. Shapes agree with one another; no axis is empty but, in an uneven split, this rank's share.
pub struct AttentionRequest<'a, T, D: Device> {
    /// The number of the session's call, by which ranks know that they make the same one.
    pub call: u64,
    /// This rank's queries: `[batch, its share of seq_q, heads, head_dim]`.
    pub query: View<'a, T, D>,
    /// This rank's keys and values: `[batch, its share of seq_k, kv_heads, head_dim]`, or all of them if they are
    /// replicated.
    pub kv: KeyValue<'a, T, D>,
    /// Where keys and values are.
    pub keys: KeyPlacement,
    /// The lengths of the whole sequences.
    pub sequence: Sequence,
    /// The joint tokens.
    pub joint: Option<Joint<'a, T, D>>,
    /// The masks of the whole sequence. Without span and segments if there are joint tokens.
    pub mask: AttentionMask<'a, D>,
    /// What is done to queries and keys on their way, if anything.
    pub edges: Option<&'a Edges<'a, T, D>>,
    /// Softmax scale.
    pub scale: f32,
    /// This rank's output: `[batch, joint tokens + its share of seq_q, heads, head_dim]`, in the joint order.
    pub out: ViewMut<'a, T, D>,
    /// Log-sum-exp of the output's rows: `[batch, joint tokens + its share of seq_q, heads, 1]`.
    pub lse: Option<ViewMut<'a, f32, D>>,
}

/// The masks of a whole sequence: a key is attended if all allow it.
pub struct AttentionMask<'a, D: Device> {
    /// By position.
    pub span: Span,
    /// For each row of the batch, how many keys are no padding.
    pub key_lengths: Option<&'a [usize]>,
    /// Packed documents.
    pub segments: Option<Segments<'a>>,
    /// `[batch, 1 or heads, joint + seq_q, joint + seq_k]`.
    pub dense: Option<View<'a, u8, D>>,
}

impl<D: Device> Clone for AttentionMask<'_, D> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for AttentionMask<'_, D> {}

impl<D: Device> Default for AttentionMask<'_, D> {
    #[inline]
    fn default() -> Self {
        Self::from(Span::Full)
    }
}

impl<D: Device> From<Span> for AttentionMask<'_, D> {
    #[inline]
    fn from(span: Span) -> Self {
        Self { span, key_lengths: None, segments: None, dense: None }
    }
}

impl<'a, D: Device> AttentionMask<'a, D> {
    /// Which masks there are.
    #[inline]
    pub const fn kinds(&self) -> Mask {
        Mask {
            span: self.span,
            key_lengths: self.key_lengths.is_some(),
            segments: self.segments.is_some(),
            dense: self.dense.is_some(),
        }
    }

    /// The mask by position, as a band over a whole sequence.
    #[inline]
    pub(super) const fn band(&self, sequence: Sequence) -> Band {
        Band::of_span(self.span, sequence.query, sequence.key)
    }

    /// What some queries and some keys see of it, but for the dense mask.
    #[inline]
    pub(super) fn between(&self, sequence: Sequence, query: Run, key: Run) -> BlockMask<'a, D> {
        BlockMask {
            band: self.band(sequence).between(query, key),
            key_lengths: self.key_lengths.map(|lengths| KeyLengths::of_block(lengths, 0, key)),
            segments: self.segments.map(|segments| BlockSegments {
                query: SegmentIds::new(segments.query, sequence.query, query),
                key: SegmentIds::new(segments.key, sequence.key, key),
            }),
            dense: None,
        }
    }

    /// Whether queries differ in what they may attend.
    pub(super) const fn tells_rows_apart(&self) -> bool {
        !matches!(self.span, Span::Full) || self.segments.is_some() || self.dense.is_some()
    }

    /// A digest of the masks that come as numbers from the host (FNV-1a, a number at a time).
    fn digest(&self) -> u64 {
        const START: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let add = |digest: u64, number: u64| (digest ^ number).wrapping_mul(PRIME);
        let lengths = self.key_lengths.unwrap_or_default().iter().map(|length| *length as u64);
        let digest = lengths.fold(START, add);
        let Some(Segments { query, key }) = self.segments else { return digest };
        // Of one sequence both are the same, and once is enough.
        let key = if query == key { &[] } else { key };
        query.iter().chain(key).map(|id| u64::from(id.cast_unsigned())).fold(digest, add)
    }
}

impl<D: Device> core::fmt::Debug for AttentionMask<'_, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("AttentionMask").field(&self.kinds()).finish()
    }
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

impl<'a, T: Element, D: Device> AttentionRequest<'a, T, D> {
    /// How many joint tokens there are.
    #[inline]
    pub fn joint_tokens(&self) -> usize {
        self.joint.as_ref().map_or(0, |joint| joint.query.shape()[1])
    }

    /// Where the joint tokens stand. Without any, it does not matter.
    pub fn joint_strategy(&self) -> JointStrategy {
        self.joint.as_ref().map_or(JointStrategy::Front, |joint| joint.order)
    }

    /// The mask by position, as a band over the whole sequence.
    #[inline]
    pub const fn band(&self) -> Band {
        self.mask.band(self.sequence)
    }

    /// The mask of a kernel call on the whole sequence, without joint tokens.
    #[inline]
    pub fn block_mask(&self) -> BlockMask<'a, D> {
        let Sequence { query, key } = self.sequence;
        BlockMask {
            dense: self.mask.dense,
            ..self.mask.between(self.sequence, Run::of(0..query), Run::of(0..key))
        }
    }

    /// The mask of a kernel call on some queries and some keys of the sequence, without joint tokens. Where the mask goes
    /// by position, both stand at the same distances.
    ///
    /// # Errors
    /// If the sequence has no such positions, or the distances differ.
    pub fn block_mask_of(&self, query: Run, key: Run) -> Result<BlockMask<'a, D>> {
        let Sequence { query: seq_q, key: seq_k } = self.sequence;
        for (what, run, seq) in [("queries", query, seq_q), ("keys", key, seq_k)] {
            let last = run.len.checked_sub(1).map_or(Some(0), |last| last.checked_mul(run.step));
            let inside = last.and_then(|last| last.checked_add(run.start)).is_some_and(|last| last < seq);
            if run.len > 0 && !inside {
                return Err(Error::Plan(format!("{run:?} reaches beyond the {seq} {what} of the sequence")));
            }
        }
        let differ = query.len > 1 && key.len > 1 && query.step != key.step;
        if differ && self.mask.span != Span::Full {
            return Err(Error::Plan(format!(
                "queries stand {} apart and keys {}: a mask by position needs equal distances",
                query.step, key.step
            )));
        }
        let dense = match self.mask.dense {
            None => None,
            Some(dense) => Some(dense.select(2, query)?.select(3, key)?),
        };
        Ok(BlockMask { dense, ..self.mask.between(self.sequence, query, key) })
    }

    /// The same call, whose edges are done: dense copies of the tensors that have some take their place.
    ///
    /// # Errors
    /// If the device does not take them.
    #[cold]
    pub(crate) fn with_edges_done(mut self, scope: Scope<'a, D>) -> Result<Self> {
        let Some(Edges { query, key, joint_query, joint_key }) = self.edges.take() else { return Ok(self) };
        self.query = query.applied(scope, self.query)?;
        self.kv.key = key.applied(scope, self.kv.key)?;
        if let Some(joint) = &mut self.joint {
            joint.query = joint_query.applied(scope, joint.query)?;
            joint.kv.key = joint_key.applied(scope, joint.kv.key)?;
        }
        Ok(self)
    }

    /// What the ranks compare.
    pub fn signature(&self, strategy: &'static str, sharding: Sharding) -> Signature {
        let [batch, _, heads, head_dim] = self.query.shape();
        let [_, _, kv_heads, _] = self.kv.key.shape();
        Signature {
            strategy,
            stage: "pre_attention",
            call: self.call,
            dtype: T::DTYPE,
            query: [batch, self.sequence.query, heads, head_dim],
            key: [batch, self.sequence.key, kv_heads, head_dim],
            keys: self.keys,
            joint: (self.joint_tokens(), self.joint_strategy()),
            sharding,
            mask: self.mask.kinds(),
            digest: self.mask.digest(),
            scale_bits: self.scale.to_bits(),
            edges: self.edges.map_or(0, Edges::digest),
            lse: self.lse.is_some(),
        }
    }
}

impl<T, D: Device> core::fmt::Debug for AttentionRequest<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AttentionRequest")
            .field("query", &self.query)
            .field("kv", &self.kv)
            .field("sequence", &self.sequence)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Cpu;
    use crate::tensor::Tensor;

    #[test]
    fn a_block_of_what_the_sequence_has_not_is_refused() {
        let x = Tensor::<f32>::from_fn([1, 4, 1, 2], |_| 0.0).unwrap();
        let mut out = x.clone();
        let request = AttentionRequest::<f32, Cpu> {
            call: 1,
            query: x.view(),
            kv: KeyValue { key: x.view(), value: x.view() },
            keys: KeyPlacement::Sharded,
            sequence: Sequence { query: 4, key: 4 },
            joint: None,
            mask: Span::Causal.into(),
            edges: None,
            scale: 1.0,
            out: out.view_mut(),
            lse: None,
        };
        let run = |start, step, len| Run { start, step, len };
        assert!(request.block_mask_of(run(0, 1, 4), run(1, 2, 1)).is_ok());
        assert!(request.block_mask_of(run(1, 2, 2), run(0, 2, 2)).is_ok());
        for (query, key, says) in [
            (run(0, 1, 100), run(0, 1, 4), "4 queries"),
            (run(0, 1, 4), run(3, 1, 2), "4 keys"),
            (run(0, 1, 4), run(0, usize::MAX, 3), "4 keys"),
            (run(0, 1, 4), run(0, 2, 2), "1 apart and keys 2"),
        ] {
            let error = request.block_mask_of(query, key).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
