//! The mask of one kernel call: what of the whole sequence's masks concerns its queries and keys.

use core::ops::Range;

use attn_plan::{Mask, Run, Span};

use crate::device::{Cpu, Device};
use crate::kernel::{Band, Cover};
use crate::tensor::View;

/// Which keys of a block its queries attend: those that the band allows, and the key lengths, the segments and the
/// dense mask, as far as there are any.
pub struct BlockMask<'a, D: Device = Cpu> {
    /// By the offset of indices in the block.
    pub band: Band,
    /// By the lengths of the rows of the batch. Keys behind them are not to be read.
    pub key_lengths: Option<KeyLengths<'a>>,
    /// By the segments of queries and keys.
    pub segments: Option<BlockSegments<'a>>,
    /// `[batch, 1 or heads, seq_q, seq_k]` of the block: what is not zero is attended.
    pub dense: Option<View<'a, u8, D>>,
}

impl<D: Device> Clone for BlockMask<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for BlockMask<'_, D> {}

impl<D: Device> core::fmt::Debug for BlockMask<'_, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("BlockMask").field("band", &self.band).field("kinds", &self.kinds()).finish()
    }
}

impl<D: Device> From<Band> for BlockMask<'_, D> {
    fn from(band: Band) -> Self {
        Self { band, key_lengths: None, segments: None, dense: None }
    }
}

impl<D: Device> BlockMask<'_, D> {
    /// Every query attends every key.
    pub const FULL: Self = Self { band: Band::FULL, key_lengths: None, segments: None, dense: None };

    /// Which masks there are: what a kernel must take.
    pub const fn kinds(&self) -> Mask {
        let full = self.band.lo <= Band::FULL.lo && self.band.hi >= Band::FULL.hi;
        Mask {
            span: if full { Span::Full } else { Span::Causal },
            key_lengths: self.key_lengths.is_some(),
            segments: self.segments.is_some(),
            dense: self.dense.is_some(),
        }
    }

    /// How many of the first `keys` keys of a row of the batch are no padding. Those behind them must not be read.
    #[inline]
    pub fn keys(&self, batch: usize, keys: usize) -> usize {
        self.key_lengths.map_or(keys, |lengths| lengths.of(batch).min(keys))
    }

    /// How band, key lengths and segments cover a block of queries and keys in one row of the batch. A dense mask is not
    /// looked at, but keeps the answer from being [`Cover::Full`].
    ///
    /// # Panics
    /// If there are segments, and none of one of the positions.
    pub fn cover(&self, batch: usize, queries: &Range<usize>, keys: &Range<usize>) -> Cover {
        let valid = self.keys(batch, keys.end).max(keys.start);
        let inside = self.band.cover(queries, &(keys.start..valid));
        if inside == Cover::Skip {
            return Cover::Skip;
        }
        let segments = self.segments.map_or(Cover::Full, |segments| segments.cover(batch, queries, keys));
        match (inside, segments) {
            (_, Cover::Skip) => Cover::Skip,
            (Cover::Full, Cover::Full) if valid == keys.end && self.dense.is_none() => Cover::Full,
            _ => Cover::Partial,
        }
    }
}

impl BlockMask<'_, Cpu> {
    /// Whether a query of a head attends a key.
    ///
    /// # Panics
    /// If the dense mask or the segments have no such row of the batch, head, query or key.
    #[inline]
    pub fn attends(&self, batch: usize, head: usize, query: usize, key: usize) -> bool {
        let dense = |dense: View<'_, u8>| {
            let head = if dense.shape()[1] == 1 { 0 } else { head };
            dense.at([batch, head, query, key]) != 0
        };
        !self.band.keys_of(query, &(key..key + 1)).is_empty()
            && self.key_lengths.is_none_or(|lengths| key < lengths.of(batch))
            && self.segments.is_none_or(|segments| segments.allow(batch, query, key))
            && self.dense.is_none_or(dense)
    }
}

/// The lengths of the rows of the batch, as the keys of a block see them.
#[derive(Clone, Copy, Debug)]
pub struct KeyLengths<'a> {
    /// Of the whole sequence, one for each row of the batch.
    lengths: &'a [usize],
    /// Keys of the block that come before the sequence's, and always count.
    always: usize,
    /// The sequence's positions that the block's other keys are.
    run: Run,
}

impl<'a> KeyLengths<'a> {
    /// The lengths of a whole sequence, one for each row of the batch.
    pub const fn new(lengths: &'a [usize]) -> Self {
        Self::of_block(lengths, 0, Run { start: 0, step: 1, len: usize::MAX })
    }

    /// As keys see them that are `always` others and then these positions.
    pub const fn of_block(lengths: &'a [usize], always: usize, run: Run) -> Self {
        Self { lengths, always, run }
    }

    /// How many of the block's keys, from the first on, are no padding. A row that is not there has none.
    #[inline]
    pub fn of(&self, batch: usize) -> usize {
        let length = self.lengths.get(batch).copied().unwrap_or(0);
        self.always.saturating_add(self.run.before(length))
    }
}

/// Segments, as a block sees them.
#[derive(Clone, Copy, Debug)]
pub struct BlockSegments<'a> {
    /// Of the queries.
    pub query: SegmentIds<'a>,
    /// Of the keys.
    pub key: SegmentIds<'a>,
}

impl BlockSegments<'_> {
    /// Whether a query and a key are of one segment.
    ///
    /// # Panics
    /// If one of them has none.
    #[inline]
    pub fn allow(&self, batch: usize, query: usize, key: usize) -> bool {
        self.query.at(batch, query) == self.key.at(batch, key)
    }

    /// How the segments cover a block in one row of the batch: exact where they stand in order, and never wrong.
    ///
    /// # Panics
    /// If one of the positions has none.
    pub fn cover(&self, batch: usize, queries: &Range<usize>, keys: &Range<usize>) -> Cover {
        let (Some((q_least, q_most)), Some((k_least, k_most))) =
            (self.query.bounds(batch, queries), self.key.bounds(batch, keys))
        else {
            return Cover::Skip;
        };
        if q_most < k_least || k_most < q_least {
            Cover::Skip
        } else if q_least == k_most && q_most == k_least {
            Cover::Full
        } else {
            Cover::Partial
        }
    }
}

/// The segments of one side of a block.
#[derive(Clone, Copy, Debug)]
pub struct SegmentIds<'a> {
    /// `[batch, seq]` of the whole sequence.
    ids: &'a [i32],
    seq: usize,
    run: Run,
}

impl<'a> SegmentIds<'a> {
    /// Those of some positions, of the ids of a whole sequence: `[batch, seq]`, row-major.
    pub const fn new(ids: &'a [i32], seq: usize, run: Run) -> Self {
        Self { ids, seq, run }
    }

    /// The segment of the block's `index`-th position.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub fn at(&self, batch: usize, index: usize) -> i32 {
        self.ids[batch * self.seq + self.run.start + index * self.run.step]
    }

    /// Whether there are ids of so many positions in so many rows of the batch.
    pub fn has(&self, batch: usize, seq: usize) -> bool {
        let last =
            seq.checked_sub(1).and_then(|last| last.checked_mul(self.run.step)?.checked_add(self.run.start));
        let row = batch.checked_sub(1).and_then(|row| row.checked_mul(self.seq));
        match (last, row) {
            (Some(last), Some(row)) => last < self.seq && row + last < self.ids.len(),
            _ => true,
        }
    }

    /// The segments of the block's first positions in one row of the batch, if they stand side by side.
    pub fn row(&self, batch: usize, seq: usize) -> Option<&'a [i32]> {
        let start = batch.checked_mul(self.seq)?.checked_add(self.run.start)?;
        let ids = self.ids.get(start..start.checked_add(seq)?)?;
        (self.run.step == 1).then_some(ids)
    }

    /// The smallest and the largest of some.
    fn bounds(&self, batch: usize, indices: &Range<usize>) -> Option<(i32, i32)> {
        let mut ids = indices.clone().map(|index| self.at(batch, index));
        let first = ids.next()?;
        Some(ids.fold((first, first), |(least, most), id| (least.min(id), most.max(id))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn covers_are_never_wrong(
            ids in proptest::collection::vec(0_i32..3, 24),
            lengths in proptest::collection::vec(0_usize..13, 2),
            (lo, hi) in (-13_i64..5, -5_i64..13),
            (q, nq, k, nk) in (0_usize..6, 1_usize..6, 0_usize..6, 1_usize..6),
            (has_lengths, has_segments) in any::<(bool, bool)>(),
        ) {
            // Twelve positions in two rows; a block of every second query and key.
            let run = |start: usize, len: usize| Run { start, step: 2, len };
            let mask = BlockMask::<Cpu> {
                band: Band { lo, hi },
                key_lengths: has_lengths.then(|| KeyLengths::of_block(&lengths, 0, run(0, 6))),
                segments: has_segments.then(|| BlockSegments {
                    query: SegmentIds::new(&ids, 12, run(0, 6)),
                    key: SegmentIds::new(&ids, 12, run(1, 6)),
                }),
                dense: None,
            };
            let (queries, keys) = (q..(q + nq).min(6), k..(k + nk).min(6));
            for batch in 0..2 {
                let (mut attended, mut all) = (0, 0);
                for i in queries.clone() {
                    for j in keys.clone() {
                        let allowed = mask.band.keys_of(i, &keys).contains(&j)
                            && (!has_lengths || 2 * j < lengths[batch])
                            && (!has_segments || ids[batch * 12 + 2 * i] == ids[batch * 12 + 2 * j + 1]);
                        prop_assert_eq!(mask.attends(batch, 0, i, j), allowed);
                        attended += usize::from(allowed);
                        all += 1;
                    }
                }
                match mask.cover(batch, &queries, &keys) {
                    Cover::Skip => prop_assert_eq!(attended, 0),
                    Cover::Full => prop_assert_eq!(attended, all),
                    Cover::Partial => {}
                }
            }
        }
    }

    #[test]
    fn key_lengths_count_the_positions_before_them() {
        let lengths = [0, 5, 6, 100];
        let block = KeyLengths::of_block(&lengths, 2, Run { start: 1, step: 4, len: 3 });
        assert_eq!([0, 1, 2, 3, 4].map(|batch| block.of(batch)), [2, 3, 4, 5, 2]);
        let whole = KeyLengths::new(&lengths);
        assert_eq!([1, 3].map(|batch| whole.of(batch)), [5, 100]);
    }
}
