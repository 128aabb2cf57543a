//! A kernel that attends nothing: every number that it writes says what it is and of what, and of every number that comes to
//! it, it checks that it is the one that should.

use super::{BLOCK_KEYS, Case, KEY_SCALES, check, fill};
use crate::device::{Cpu, Scope};
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel, QuantisedAttention, QuantisedShard, QuantisedTensors};
use crate::tensor::{View, ViewMut};

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Query,
    Key,
    Value,
    QueryScale,
    QueryMean,
    KeyScale,
    ValueScale,
    Sums,
    Maxima,
    Out,
    Lse,
}

/// What it is of: a row of the batch, a head of the whole call, a position with joint tokens first (or a block, or a shard), a
/// channel. Each in a number of its own.
pub(super) fn coordinate(what: What, [batch, head, at, channel]: [usize; 4]) -> f32 {
    assert!(batch < 3 && head < 16 && at < 64 && channel < 16);
    ((((what as usize * 3 + batch) * 16 + head) * 64 + at) * 16 + channel) as f32
}

/// A byte that few numbers share.
fn byte(number: f32) -> u8 {
    ((number as u32).wrapping_mul(0x9e37_79b1) >> 24) as u8
}

pub(super) struct Coordinates<'a> {
    pub(super) case: Case,
    pub(super) rank: usize,
    pub(super) lengths: Option<&'a [usize]>,
}

impl Coordinates<'_> {
    fn write(&self, call: &mut AttentionCall<'_, f32, Cpu>, first_head: usize) {
        let number = |what, [b, row, h, c]: [usize; 4]| coordinate(what, [b, first_head + h, row, c]);
        fill(call.out.reborrow(), |index| number(What::Out, index));
        if let Some(lse) = &mut call.lse {
            fill(lse.reborrow(), |index| number(What::Lse, index));
        }
    }

    /// How many of a row's keys count, joint ones included.
    fn length(&self, batch: usize) -> i32 {
        let Case { joint, seq: [_, seq_k], .. } = self.case;
        (joint + self.lengths.map_or(seq_k, |lengths| lengths[batch])) as i32
    }
}

impl AttentionKernel<Cpu, f32> for Coordinates<'_> {
    fn forward(&self, _: Scope<'_, Cpu>, call: &mut AttentionCall<'_, f32, Cpu>) -> Result<()> {
        assert_eq!(self.case.ranks, 1, "what is exchanged is attended in 8 bits");
        let at = |what, [b, row, h, c]: [usize; 4]| coordinate(what, [b, h, row, c]);
        check(What::Query, call.query, call.query.shape(), |index| at(What::Query, index));
        check(What::Key, call.kv.key, call.kv.key.shape(), |index| at(What::Key, index));
        check(What::Value, call.kv.value, call.kv.value.shape(), |index| at(What::Value, index));
        self.write(call, 0);
        Ok(())
    }
}

impl QuantisedAttention<Cpu, f32> for Coordinates<'_> {
    const BLOCK_KEYS: usize = BLOCK_KEYS;
    const KEY_SCALES: usize = KEY_SCALES;

    fn survey<'a>(
        &self,
        scope: Scope<'a, Cpu>,
        shard: &mut QuantisedShard<'a, f32, Cpu>,
        sums: ViewMut<'_, f32>,
    ) -> Result<()> {
        let Case { batch, heads: [_, kv_heads], head_dim, seq: [_, seq_k], .. } = self.case;
        assert_eq!(shard.keys, self.case.shards(self.rank, seq_k));
        assert_eq!(shard.kv.key.shape(), [batch, shard.keys.own().len(), kv_heads, head_dim]);
        assert_eq!(sums.shape(), [batch, kv_heads, 1, 2 * head_dim]);
        fill(sums, |[b, h, _, c]| coordinate(What::Sums, [b, h, self.rank, c]));
        shard.resident_lengths = match shard.key_lengths {
            None => None,
            Some(lengths) => {
                let mut resident = scope.take([batch, 1, 1, 1])?;
                fill(resident.reborrow(), |[b, ..]| lengths.of(b) as i32);
                Some(resident.into_view())
            }
        };
        assert_eq!(shard.resident_lengths.is_some(), self.lengths.is_some());
        Ok(())
    }

    fn settle(
        &self,
        _: Scope<'_, Cpu>,
        shard: &mut QuantisedShard<'_, f32, Cpu>,
        sums: View<'_, f32>,
    ) -> Result<()> {
        let Case { ranks, batch, heads: [_, kv_heads], head_dim, .. } = self.case;
        check(What::Sums, sums, [batch, kv_heads, ranks, 2 * head_dim], |index| {
            coordinate(What::Sums, index)
        });
        fill(shard.value_scale.reborrow(), |index| coordinate(What::ValueScale, index));
        Ok(())
    }

    fn edge_maxima(
        &self,
        _: Scope<'_, Cpu>,
        _: &QuantisedShard<'_, f32, Cpu>,
        maxima: ViewMut<'_, f32>,
    ) -> Result<()> {
        fill(maxima, |[b, h, _, c]| coordinate(What::Maxima, [b, h, self.rank, c]));
        Ok(())
    }

    fn quantise(
        &self,
        _: Scope<'_, Cpu>,
        shard: &QuantisedShard<'_, f32, Cpu>,
        maxima: Option<View<'_, f32>>,
        into: &mut QuantisedTensors<'_, Cpu>,
    ) -> Result<()> {
        let Case { ranks, batch, heads: [_, kv_heads], seq: [seq_q, seq_k], .. } = self.case;
        if let Some(maxima) = maxima {
            let shape = [batch, kv_heads, ranks, 2 * KEY_SCALES];
            check(What::Maxima, maxima, shape, |index| coordinate(What::Maxima, index));
        }
        let (queries, keys) =
            (self.case.shards(self.rank, seq_q).own(), self.case.shards(self.rank, seq_k).own());
        let blocks = keys.start / BLOCK_KEYS..keys.end.div_ceil(BLOCK_KEYS);
        // The bytes are those of the tensors that came; scales say where they are from.
        fill(into.query.reborrow(), |[b, h, row, c]| byte(shard.query.at([b, row, h, c])));
        fill(into.key.reborrow(), |[b, h, row, c]| byte(shard.kv.key.at([b, row, h, c])));
        fill(into.value.reborrow(), |[b, h, row, c]| byte(shard.kv.value.at([b, row, h, c])));
        let of_query =
            |what| move |[b, h, row, c]: [usize; 4]| coordinate(what, [b, h, queries.start + row, c]);
        fill(into.query_scale.reborrow(), of_query(What::QueryScale));
        if let Some(mean) = &mut into.query_mean {
            fill(mean.reborrow(), of_query(What::QueryMean));
        }
        fill(into.key_scale.reborrow(), |[b, h, block, c]| {
            coordinate(What::KeyScale, [b, h, blocks.start + block, c])
        });
        Ok(())
    }

    fn attend(
        &self,
        _: Scope<'_, Cpu>,
        tensors: &QuantisedTensors<'_, Cpu>,
        value_scale: View<'_, f32>,
        key_lengths: Option<View<'_, i32>>,
        call: &mut AttentionCall<'_, f32, Cpu>,
    ) -> Result<()> {
        let Case {
            ranks,
            batch,
            heads: [heads, kv_heads],
            head_dim,
            seq: [seq_q, seq_k],
            joint,
            lse,
            split,
            ..
        } = self.case;
        let layout = attn_plan::HeadLayout::new(split, ranks, heads, kv_heads).unwrap();
        let (heads, kv_heads) = (layout.heads(self.rank), layout.kv_heads(self.rank));
        let (queries, keys) = (joint + seq_q, joint + seq_k);
        let of =
            |what, first: usize| move |[b, h, at, c]: [usize; 4]| coordinate(what, [b, first + h, at, c]);
        let bytes = |what, first| move |index: [usize; 4]| byte(of(what, first)(index));
        let (query, key) = ([batch, heads.len(), queries, head_dim], [batch, kv_heads.len(), keys, head_dim]);
        check(What::Query, tensors.query.as_view(), query, bytes(What::Query, heads.start));
        check(What::Key, tensors.key.as_view(), key, bytes(What::Key, kv_heads.start));
        check(What::Value, tensors.value.as_view(), key, bytes(What::Value, kv_heads.start));
        let scales = [batch, heads.len(), queries, 1];
        check(What::QueryScale, tensors.query_scale.as_view(), scales, of(What::QueryScale, heads.start));
        assert_eq!(tensors.query_mean.is_some(), lse);
        if let Some(mean) = &tensors.query_mean {
            check(What::QueryMean, mean.as_view(), scales, of(What::QueryMean, heads.start));
        }
        let scales = [batch, kv_heads.len(), keys.div_ceil(BLOCK_KEYS), KEY_SCALES];
        check(What::KeyScale, tensors.key_scale.as_view(), scales, of(What::KeyScale, kv_heads.start));
        let scales = [batch, kv_heads.len(), 1, head_dim];
        check(What::ValueScale, value_scale, scales, of(What::ValueScale, kv_heads.start));
        assert_eq!(key_lengths.is_some(), self.lengths.is_some());
        if let Some(lengths) = key_lengths {
            assert!((0..batch).all(|b| lengths.at([b, 0, 0, 0]) == self.length(b)));
        }
        assert_eq!(call.out.shape(), [batch, queries, heads.len(), head_dim]);
        self.write(call, heads.start);
        Ok(())
    }
}
