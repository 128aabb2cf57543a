//! Masks by position, as a kernel sees them.

use core::ops::Range;

use attn_plan::{Run, Span};

/// The keys that a query may attend, as a range of offsets: query `i` attends key `j` if `lo <= j - i <= hi`.
///
/// ```
/// use attn_runtime::Band;
///
/// // Six queries at the end of eight keys: query 0 stands at key 2.
/// let causal = Band::causal(6, 8);
/// assert_eq!(causal.keys_of(0, &(0..8)), 0..3);
/// // The same, in the eyes of a block that starts at query 3 and key 4.
/// assert_eq!(causal.from_block(3, 4).keys_of(0, &(0..4)), 0..2);
/// ```
///
/// No mask, causal masks, sliding windows, sequences of unlike lengths and the blocks of a ring all are bands, so a
/// kernel needs no other notion of a mask by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Band {
    /// The smallest offset.
    pub lo: i64,
    /// The largest offset.
    pub hi: i64,
}

/// How a band covers a block of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// No query of the block attends any of its keys.
    Skip,
    /// Every query attends every key.
    Full,
    /// Some do.
    Partial,
}

impl Band {
    /// Every query attends every key.
    pub const FULL: Self = Self { lo: -Self::FAR, hi: Self::FAR };

    /// Farther than any offset of two positions, and small enough to be shifted without overflow.
    const FAR: i64 = i64::MAX / 4;

    /// Queries attend the keys up to their own position; the last query is at the last key's.
    pub const fn causal(seq_q: usize, seq_k: usize) -> Self {
        Self { lo: -Self::FAR, hi: Self::index(seq_k).saturating_sub(Self::index(seq_q)) }
    }

    /// The same band seen from a block whose first query is query `query` and whose first key is key `key`.
    #[must_use]
    pub const fn from_block(self, query: usize, key: usize) -> Self {
        let shift = Self::index(query).saturating_sub(Self::index(key));
        Self { lo: Self::bounded(self.lo, shift), hi: Self::bounded(self.hi, shift) }
    }

    /// The band that a span is over a whole sequence.
    pub const fn of_span(span: Span, seq_q: usize, seq_k: usize) -> Self {
        let last = Self::causal(seq_q, seq_k);
        match span {
            Span::Full => Self::FULL,
            Span::Causal => last,
            Span::Window { left, right } => {
                let (left, right) = (Self::distance(left), Self::distance(right));
                Self { lo: Self::bounded(-left, last.hi), hi: Self::bounded(right, last.hi) }
            }
        }
    }

    /// An index as an offset from the first one.
    const fn index(index: usize) -> i64 {
        if index > i64::MAX as usize { i64::MAX } else { index as i64 }
    }

    /// A number of positions as an offset; what is farther than any is infinite.
    const fn distance(positions: usize) -> i64 {
        if positions as u128 >= Self::FAR as u128 { Self::FAR } else { positions as i64 }
    }

    /// The same band seen from a block of these queries and keys, by their index there: the runs' steps are equal.
    #[must_use]
    pub fn between(self, query: Run, key: Run) -> Self {
        let Self { lo, hi } = self.from_block(query.start, key.start);
        let step = i64::try_from(query.step).unwrap_or(Self::FAR).max(1);
        // Offsets of indices are those of positions, divided: the least is rounded up, the largest down.
        let infinite = |offset: i64| offset <= -Self::FAR || offset >= Self::FAR;
        Self {
            lo: if infinite(lo) { lo } else { -(-lo).div_euclid(step) },
            hi: if infinite(hi) { hi } else { hi.div_euclid(step) },
        }
    }

    /// `offset + shift`, where an offset that stands for infinity stays so.
    const fn bounded(offset: i64, shift: i64) -> i64 {
        if offset <= -Self::FAR || offset >= Self::FAR { offset } else { offset.saturating_add(shift) }
    }

    /// How the band covers a block.
    pub const fn cover(self, queries: &Range<usize>, keys: &Range<usize>) -> Cover {
        if queries.start >= queries.end || keys.start >= keys.end {
            return Cover::Skip;
        }
        let least = Self::index(keys.start).saturating_sub(Self::index(queries.end - 1));
        let most = Self::index(keys.end - 1).saturating_sub(Self::index(queries.start));
        if most < self.lo || least > self.hi || self.lo > self.hi {
            Cover::Skip
        } else if self.lo <= least && most <= self.hi {
            Cover::Full
        } else {
            Cover::Partial
        }
    }

    /// Which of `keys` query `query` attends.
    pub fn keys_of(self, query: usize, keys: &Range<usize>) -> Range<usize> {
        if keys.is_empty() {
            return keys.start..keys.start;
        }
        let (query, first, last) = (Self::index(query), Self::index(keys.start), Self::index(keys.end));
        let start = query.saturating_add(self.lo).clamp(first, last);
        let end = query.saturating_add(self.hi).saturating_add(1).clamp(start, last);
        start as usize..end as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cover_and_rows_agree_with_the_definition(
            lo in -12_i64..12, hi in -12_i64..12, q in 0_usize..8, nq in 1_usize..8, k in 0_usize..8, nk in 1_usize..8,
        ) {
            let band = Band { lo, hi };
            let (queries, keys) = (q..q + nq, k..k + nk);
            let attends = |i: usize, j: usize| lo <= j as i64 - i as i64 && j as i64 - i as i64 <= hi;
            let mut count = 0;
            for i in queries.clone() {
                let row = band.keys_of(i, &keys);
                for j in keys.clone() {
                    prop_assert_eq!(row.contains(&j), attends(i, j));
                    count += usize::from(attends(i, j));
                }
            }
            // A band is a diagonal stripe: it can touch the corners' range of offsets without meeting the block only
            // where it is empty.
            match band.cover(&queries, &keys) {
                Cover::Skip => prop_assert_eq!(count, 0),
                Cover::Full => prop_assert_eq!(count, nq * nk),
                Cover::Partial => prop_assert!(count > 0 && count < nq * nk),
            }
        }

        #[test]
        fn a_block_sees_the_same_band(
            hi in -9_i64..9, q in 0_usize..9, k in 0_usize..9, i in 0_usize..9, j in 0_usize..9,
        ) {
            for band in [Band { lo: hi - 3, hi }, Band { lo: Band::FULL.lo, hi }, Band::FULL] {
                let inside = band.keys_of(q + i, &(0..30)).contains(&(k + j));
                prop_assert_eq!(band.from_block(q, k).keys_of(i, &(0..30)).contains(&j), inside);
            }
        }
    }

    proptest! {
        #[test]
        fn striped_blocks_see_the_same_band(
            (lo, hi) in (-40_i64..40, -40_i64..40), step in 1_usize..5, q in 0_usize..9, k in 0_usize..9,
        ) {
            for band in [Band { lo, hi }, Band { lo: Band::FULL.lo, hi }, Band { lo, hi: Band::FULL.hi }] {
                let inside = band.between(Run { start: q, step, len: 9 }, Run { start: k, step, len: 9 });
                for i in 0..9 {
                    for j in 0..9 {
                        let whole = band.keys_of(q + i * step, &(0..60)).contains(&(k + j * step));
                        prop_assert_eq!(inside.keys_of(i, &(0..9)).contains(&j), whole);
                    }
                }
            }
        }
    }

    #[test]
    fn windows_stand_at_the_last_key() {
        let band = Band::of_span(Span::Window { left: 2, right: 1 }, 4, 6);
        assert_eq!((0..4).map(|i| band.keys_of(i, &(0..6))).collect::<Vec<_>>(), [0..4, 1..5, 2..6, 3..6]);
        let causal = Band::of_span(Span::Window { left: usize::MAX, right: 0 }, 4, 6);
        assert_eq!(causal, Band::causal(4, 6));
        assert_eq!(Band::of_span(Span::Window { left: usize::MAX, right: usize::MAX }, 4, 6), Band::FULL);
    }

    #[test]
    fn causal_ends_at_the_last_key() {
        let band = Band::causal(3, 5);
        assert_eq!(band.keys_of(2, &(0..5)), 0..5);
        assert_eq!(band.keys_of(0, &(0..5)), 0..3);
        assert_eq!(Band::causal(5, 3).keys_of(1, &(0..3)), 0..0);
    }
}
