//! Who owns which positions and heads: settled on the host from agreed numbers, never by a collective.

use core::ops::Range;

use crate::error::{Error, Result};

/// How one tensor's sequence and heads are shared among the ranks of a group.
///
/// ```
/// use attn_runtime::SequenceLayout;
///
/// // Four ranks of 1024 positions; 24 query heads, 2 key heads: each of those goes to two ranks.
/// let layout = SequenceLayout::strict(4, 1024, 24, 2)?;
/// assert_eq!(layout.positions(1), 1024..2048);
/// assert_eq!((layout.heads(1), layout.kv_heads(1)), (6..12, 0..1));
/// # Ok::<(), attn_runtime::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceLayout {
    ranks: usize,
    seq_per_rank: usize,
    heads: usize,
    kv_heads: usize,
}

impl SequenceLayout {
    /// The strict split: every rank holds `seq_per_rank` consecutive positions, and computes an equal number of
    /// consecutive query heads, with the key and value heads that these need.
    ///
    /// # Errors
    /// If `kv_heads` does not divide `heads`, or `ranks` does not divide the heads
    /// ([`attn_plan::check_head_split`]).
    pub fn strict(ranks: usize, seq_per_rank: usize, heads: usize, kv_heads: usize) -> Result<Self> {
        attn_plan::check_kv_group(heads, kv_heads)?;
        attn_plan::check_head_split(heads, kv_heads, ranks)?;
        if ranks.checked_mul(seq_per_rank).is_none() {
            return Err(Error::Configuration(format!(
                "{ranks} ranks of {seq_per_rank} positions are more than can be counted"
            )));
        }
        Ok(Self { ranks, seq_per_rank, heads, kv_heads })
    }

    /// How many ranks share the tensor.
    pub const fn ranks(&self) -> usize {
        self.ranks
    }

    /// The length of the whole sequence.
    pub const fn seq(&self) -> usize {
        self.ranks * self.seq_per_rank
    }

    /// The positions that a rank holds outside the kernel.
    ///
    /// # Panics
    /// If there is no such rank.
    pub const fn positions(&self, rank: usize) -> Range<usize> {
        assert!(rank < self.ranks, "the layout has fewer ranks");
        rank * self.seq_per_rank..(rank + 1) * self.seq_per_rank
    }

    /// The query heads that a rank computes.
    ///
    /// # Panics
    /// If there is no such rank.
    pub const fn heads(&self, rank: usize) -> Range<usize> {
        assert!(rank < self.ranks, "the layout has fewer ranks");
        let share = self.heads / self.ranks;
        rank * share..(rank + 1) * share
    }

    /// The key and value heads that a rank's query heads attend with.
    ///
    /// # Panics
    /// If there is no such rank.
    pub const fn kv_heads(&self, rank: usize) -> Range<usize> {
        let group = self.heads / self.kv_heads;
        let Range { start, end } = self.heads(rank);
        start / group..end.div_ceil(group)
    }
}

/// The `rank`-th of `ranks` nearly equal parts of `0..length`.
pub(crate) const fn share(length: usize, ranks: usize, rank: usize) -> Range<usize> {
    length * rank / ranks..length * (rank + 1) / ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_positions_and_heads_in_order() {
        let layout = SequenceLayout::strict(4, 5, 8, 4).unwrap();
        assert_eq!(layout.seq(), 20);
        assert_eq!((layout.positions(2), layout.heads(2), layout.kv_heads(2)), (10..15, 4..6, 2..3));
    }

    #[test]
    fn a_kv_head_goes_to_every_rank_that_needs_it() {
        let layout = SequenceLayout::strict(4, 1, 8, 2).unwrap();
        let kv: Vec<_> = (0..4).map(|rank| layout.kv_heads(rank)).collect();
        assert_eq!(kv, [0..1, 0..1, 1..2, 1..2]);
    }

    #[test]
    fn shares_cover_without_overlap() {
        for (length, ranks) in [(8, 3), (2, 5), (0, 2), (7, 7)] {
            let parts: Vec<usize> = (0..ranks).flat_map(|rank| share(length, ranks, rank)).collect();
            assert_eq!(parts, (0..length).collect::<Vec<_>>());
        }
    }
}
