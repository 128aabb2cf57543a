//! Kernels that compute in 8 bits, and can be given tensors that were rounded before they were exchanged.

use core::ops::Range;

use attn_plan::portion;

use crate::device::{Device, Scope};
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel, KeyLengths};
use crate::tensor::{Element, KeyValue, View, ViewMut};

/// A kernel that computes in 8 bits, and whose rounding can be done before queries, keys and values are exchanged: what a
/// strategy needs of it that sends them so.
///
/// Keys are rounded less their mean, and each channel of the values by its largest magnitude: both are of the whole
/// sequence, and so are blocks of keys that share their scales. Ranks find them together, in two rounds of a few numbers
/// for each head, so that what a rank attends with is what one rank that had everything would have made of it (up to the
/// order in which the mean is summed):
///
/// 1. [`survey`](Self::survey): what this rank's keys and values come to; ranks tell each other.
/// 2. [`settle`](Self::settle): the mean and the values' scales, out of what all ranks came to.
/// 3. Where blocks of keys lie on two shards or more, [`edge_maxima`](Self::edge_maxima): how large the keys of this
///    rank's first and last block are; ranks tell each other.
/// 4. [`quantise`](Self::quantise): this rank's tensors, of all heads; they are exchanged for other ranks' of its heads.
/// 5. [`attend`](Self::attend).
#[diagnostic::on_unimplemented(
    message = "kernel `{Self}` does not compute in 8 bits, so that nothing can be rounded before it is exchanged",
    label = "does not implement `QuantisedAttention<{D}, {T}>`, which this strategy needs",
    note = "use `sage` on GPUs, or the strategy `ulysses`, which exchanges tensors as they are"
)]
pub trait QuantisedAttention<D: Device, T: Element>: AttentionKernel<D, T> {
    /// How many keys share their scales. Blocks are counted from the first key of the whole sequence.
    const BLOCK_KEYS: usize;
    /// How many scales such a block has.
    const KEY_SCALES: usize;

    /// Writes, for each head of this rank's keys, their sums and the largest magnitudes of the values, channel by channel:
    /// `[batch, kv_heads, 1, 2 * head_dim]`, dense. Puts the shard's key lengths where the device reads them.
    ///
    /// # Errors
    /// If the kernel does not take such tensors, or the device reports an error.
    fn survey<'a>(
        &self,
        scope: Scope<'a, D>,
        shard: &mut QuantisedShard<'a, T, D>,
        sums: ViewMut<'_, f32, D>,
    ) -> Result<()>;

    /// Writes the mean key and the values' scales of all shards, out of what each came to:
    /// `[batch, kv_heads, shards, 2 * head_dim]`, dense.
    ///
    /// # Errors
    /// If the device reports one.
    fn settle(
        &self,
        scope: Scope<'_, D>,
        shard: &mut QuantisedShard<'_, T, D>,
        sums: View<'_, f32, D>,
    ) -> Result<()>;

    /// Writes the largest magnitudes of this rank's keys, less their mean, in the first and in the last block that it has
    /// keys of, for each scale of a block: `[batch, kv_heads, 1, 2 * KEY_SCALES]`, dense.
    ///
    /// # Errors
    /// If the device reports one.
    fn edge_maxima(
        &self,
        scope: Scope<'_, D>,
        shard: &QuantisedShard<'_, T, D>,
        maxima: ViewMut<'_, f32, D>,
    ) -> Result<()>;

    /// Rounds this rank's queries, keys and values. `maxima`, if blocks lie on several shards, is what all of them found:
    /// `[batch, kv_heads, shards, 2 * KEY_SCALES]`, dense.
    ///
    /// # Errors
    /// If the device reports one.
    fn quantise(
        &self,
        scope: Scope<'_, D>,
        shard: &QuantisedShard<'_, T, D>,
        maxima: Option<View<'_, f32, D>>,
        into: &mut QuantisedTensors<'_, D>,
    ) -> Result<()>;

    /// Computes one call on tensors in 8 bits instead of its own: its query, key and value are not read. `value_scale` is that
    /// of the tensors' heads, dense; `key_lengths` are those of the survey, instead of the mask's.
    ///
    /// # Errors
    /// As [`AttentionKernel::forward`].
    fn attend(
        &self,
        scope: Scope<'_, D>,
        tensors: &QuantisedTensors<'_, D>,
        value_scale: View<'_, f32, D>,
        key_lengths: Option<View<'_, i32, D>>,
        call: &mut AttentionCall<'_, T, D>,
    ) -> Result<()>;
}

/// How ranks share a sequence: joint tokens first, which belong to the first rank, then equal stretches in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    /// How many ranks there are.
    pub shards: usize,
    /// This rank's number.
    pub shard: usize,
    /// Joint tokens.
    pub joint: usize,
    /// Positions besides these.
    pub tokens: usize,
}

impl Shards {
    /// All tokens.
    pub const fn all(&self) -> usize {
        self.joint + self.tokens
    }

    /// The tokens of a rank.
    ///
    /// # Panics
    /// If there is no such rank.
    pub const fn range(&self, shard: usize) -> Range<usize> {
        let Range { start, end } = portion(self.tokens, self.shards, shard);
        let start = if shard == 0 { 0 } else { self.joint + start };
        start..self.joint + end
    }

    /// This rank's tokens.
    pub const fn own(&self) -> Range<usize> {
        self.range(self.shard)
    }

    /// The blocks of so many tokens that a rank has some of.
    ///
    /// # Panics
    /// If there is no such rank.
    pub const fn blocks(&self, shard: usize, block: usize) -> Range<usize> {
        let Range { start, end } = self.range(shard);
        let first = start / block;
        if start == end { first..first } else { first..end.div_ceil(block) }
    }

    /// The blocks of which a rank has the first token: each has one owner.
    ///
    /// # Panics
    /// If there is no such rank.
    pub const fn owned_blocks(&self, shard: usize, block: usize) -> Range<usize> {
        let Range { start, end } = self.range(shard);
        start.div_ceil(block)..end.div_ceil(block)
    }

    /// Whether a block lies on several shards.
    pub fn straddle(&self, block: usize) -> bool {
        (1..self.shards)
            .map(|shard| self.range(shard).start)
            .any(|start| !start.is_multiple_of(block) && start < self.all())
    }
}

/// One rank's part of a sequence on its way to 8 bits.
pub struct QuantisedShard<'a, T, D: Device> {
    /// `[batch, its queries, heads, head_dim]`.
    pub query: View<'a, T, D>,
    /// Two of `[batch, its keys, kv_heads, head_dim]`.
    pub kv: KeyValue<'a, T, D>,
    /// How keys are shared.
    pub keys: Shards,
    /// What the products of queries and keys are multiplied with.
    pub scale: f32,
    /// How many of all keys count.
    pub key_lengths: Option<KeyLengths<'a>>,
    /// The same in memory of the device, `[batch, 1, 1, 1]`, once there has been a survey; none if all count.
    pub resident_lengths: Option<View<'a, i32, D>>,
    /// The mean key: `[batch, kv_heads, 1, head_dim]`, dense.
    pub key_mean: ViewMut<'a, f32, D>,
    /// What each channel of the values in 8 bits is to be multiplied with: `[batch, kv_heads, 1, head_dim]`, dense.
    pub value_scale: ViewMut<'a, f32, D>,
}

/// Queries, keys and values in 8 bits, each tensor dense.
pub struct QuantisedTensors<'a, D> {
    /// `[batch, heads, seq_q, head_dim]`.
    pub query: ViewMut<'a, u8, D>,
    /// `[batch, kv_heads, seq_k, head_dim]`.
    pub key: ViewMut<'a, u8, D>,
    /// `[batch, kv_heads, seq_k, head_dim]`.
    pub value: ViewMut<'a, u8, D>,
    /// What a query's products are to be multiplied with: `[batch, heads, seq_q, 1]`.
    pub query_scale: ViewMut<'a, f32, D>,
    /// By how much a query's products are too small, since keys are rounded less their mean: `[batch, heads, seq_q, 1]`. Only
    /// a log-sum-exp needs it.
    pub query_mean: Option<ViewMut<'a, f32, D>>,
    /// What a block's products are to be multiplied with: `[batch, kv_heads, blocks, KEY_SCALES]`.
    pub key_scale: ViewMut<'a, f32, D>,
}

impl<'a, D: Device> QuantisedTensors<'a, D> {
    /// Takes memory for tensors of `[batch, heads, kv_heads, head_dim]` and `[queries, keys, blocks, scales of a block]`. `mean`:
    /// whether a log-sum-exp is wanted.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn take(
        scope: Scope<'a, D>,
        [batch, heads, kv_heads, head_dim]: [usize; 4],
        [queries, keys, blocks, scales]: [usize; 4],
        mean: bool,
    ) -> Result<Self> {
        let of_query = || scope.take([batch, heads, queries, 1]);
        Ok(Self {
            query: scope.take([batch, heads, queries, head_dim])?,
            key: scope.take([batch, kv_heads, keys, head_dim])?,
            value: scope.take([batch, kv_heads, keys, head_dim])?,
            query_scale: of_query()?,
            query_mean: mean.then(of_query).transpose()?,
            key_scale: scope.take([batch, kv_heads, blocks, scales])?,
        })
    }
}

impl<T, D: Device> core::fmt::Debug for QuantisedShard<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("QuantisedShard").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl<D> core::fmt::Debug for QuantisedTensors<'_, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let shapes = (self.query.shape(), self.key.shape());
        f.debug_struct("QuantisedTensors").field("shapes", &shapes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_key_has_one_shard_and_each_block_one_owner(
            shards in 1_usize..9, joint in 0_usize..40, tokens in 1_usize..300, block in 1_usize..50,
        ) {
            let all = |shard| Shards { shards, shard, joint, tokens };
            let (mut keys, mut blocks) = (0, 0);
            for shard in 0..shards {
                let own = all(shard);
                prop_assert_eq!(own.own().start, if own.own().is_empty() { own.own().start } else { keys });
                keys += own.own().len();
                let (had, owned) = (own.blocks(shard, block), own.owned_blocks(shard, block));
                for number in had.clone() {
                    prop_assert!(own.own().any(|key| key / block == number));
                }
                for number in owned.clone() {
                    prop_assert!(had.contains(&number) && own.own().contains(&(number * block)));
                }
                blocks += owned.len();
            }
            prop_assert_eq!(keys, joint + tokens);
            prop_assert_eq!(blocks, (joint + tokens).div_ceil(block));
            let several = (0..blocks).any(|number| {
                (0..shards).filter(|&shard| all(0).blocks(shard, block).contains(&number)).count() > 1
            });
            prop_assert_eq!(all(0).straddle(block), several);
        }
    }
}
