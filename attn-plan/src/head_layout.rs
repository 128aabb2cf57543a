//! Which rank computes which heads.

use core::fmt;
use core::ops::Range;

use crate::heads::{HeadSplitError, KvGroupError, check_head_split, check_kv_group};
use crate::split::{Split, portion};

/// Who computes which heads in a Ulysses group.
///
/// Strict: equal numbers of consecutive query heads. Uneven: the key and value heads are shared out as evenly as can be,
/// each with all its query heads, so that no group of grouped-query attention is taken apart; if there are fewer of them
/// than ranks, the query heads are shared out instead. In both cases a rank gets the key and value heads that its query
/// heads need, and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadLayout {
    split: Split,
    ranks: usize,
    heads: usize,
    kv_heads: usize,
}

/// Query heads that attend with whole or equally cut groups: what a kernel takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadRun {
    /// The first query head, counted among the rank's own.
    pub head: usize,
    /// How many.
    pub heads: usize,
    /// The first key and value head, counted among the rank's own.
    pub kv_head: usize,
    /// How many: they divide `heads`.
    pub kv_heads: usize,
}

impl HeadLayout {
    /// The heads of a group of `ranks`.
    ///
    /// # Errors
    /// If `kv_heads` does not divide `heads`, or the split is strict and they do not divide among the ranks, of which
    /// there is at least one.
    pub fn new(split: Split, ranks: usize, heads: usize, kv_heads: usize) -> Result<Self, HeadError> {
        check_kv_group(heads, kv_heads)?;
        if split == Split::Strict || ranks == 0 {
            check_head_split(heads, kv_heads, ranks)?;
        }
        Ok(Self { split, ranks, heads, kv_heads })
    }

    /// The query heads that a rank computes.
    ///
    /// # Panics
    /// If there is no such rank.
    pub const fn heads(&self, rank: usize) -> Range<usize> {
        assert!(rank < self.ranks, "the layout has fewer ranks");
        if matches!(self.split, Split::Uneven) && self.kv_heads >= self.ranks {
            let group = self.heads / self.kv_heads;
            let Range { start, end } = portion(self.kv_heads, self.ranks, rank);
            return start * group..end * group;
        }
        portion(self.heads, self.ranks, rank)
    }

    /// The key and value heads that these attend with.
    ///
    /// # Panics
    /// If there is no such rank.
    pub const fn kv_heads(&self, rank: usize) -> Range<usize> {
        let group = self.heads / self.kv_heads;
        let Range { start, end } = self.heads(rank);
        if start == end {
            return start / group..start / group;
        }
        start / group..end.div_ceil(group)
    }

    /// A rank's heads, cut where a group is not whole: one run, unless a rank starts or ends inside of a group and has
    /// heads of another one too.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn runs(&self, rank: usize) -> Vec<HeadRun> {
        let group = self.heads / self.kv_heads;
        let (heads, kv_heads) = (self.heads(rank), self.kv_heads(rank));
        let run = |from: usize, to: usize| HeadRun {
            head: from - heads.start,
            heads: to - from,
            kv_head: from / group - kv_heads.start,
            kv_heads: (to - from).div_ceil(group),
        };
        if heads.is_empty() {
            return Vec::new();
        }
        if kv_heads.len() == 1 || heads.len() == kv_heads.len() * group {
            return vec![run(heads.start, heads.end)];
        }
        let (first_whole, last_whole) = (heads.start.div_ceil(group) * group, heads.end / group * group);
        [(heads.start, first_whole), (first_whole, last_whole), (last_whole, heads.end)]
            .into_iter()
            .filter(|(from, to)| from < to)
            .map(|(from, to)| run(from, to))
            .collect()
    }
}

/// Heads that cannot be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// They do not form groups.
    Group(KvGroupError),
    /// They do not divide among the ranks.
    Split(HeadSplitError),
}

impl From<KvGroupError> for HeadError {
    fn from(error: KvGroupError) -> Self {
        Self::Group(error)
    }
}

impl From<HeadSplitError> for HeadError {
    fn from(error: HeadSplitError) -> Self {
        Self::Split(error)
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(error) => error.fmt(f),
            Self::Split(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for HeadError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uneven_heads_stay_with_their_group_while_there_are_enough() {
        let heads = |ranks, heads, kv| HeadLayout::new(Split::Uneven, ranks, heads, kv).unwrap();
        let shares = |layout: HeadLayout, ranks: usize| {
            (0..ranks).map(|r| (layout.heads(r).len(), layout.kv_heads(r))).collect::<Vec<_>>()
        };
        let mha: Vec<usize> = shares(heads(8, 30, 30), 8).into_iter().map(|(heads, _)| heads).collect();
        assert_eq!(mha, [4, 4, 4, 4, 4, 4, 3, 3]);
        assert_eq!(shares(heads(2, 28, 7), 2), [(16, 0..4), (12, 4..7)]);
        assert_eq!(shares(heads(3, 4, 1), 3), [(2, 0..1), (1, 0..1), (1, 0..1)]);
        assert_eq!(shares(heads(4, 3, 3), 4), [(1, 0..1), (1, 1..2), (1, 2..3), (0, 3..3)]);
        assert_eq!(shares(heads(4, 12, 3), 4), [(3, 0..1), (3, 0..2), (3, 1..3), (3, 2..3)]);
    }

    #[test]
    fn runs_of_heads_attend_with_their_own_groups() {
        for (ranks, kv_heads, group) in
            (1..9).flat_map(|r| (1..7).flat_map(move |kv| (1..6).map(move |g| (r, kv, g))))
        {
            let layout = HeadLayout::new(Split::Uneven, ranks, kv_heads * group, kv_heads).unwrap();
            let mut all = 0;
            for rank in 0..ranks {
                let (heads, kv) = (layout.heads(rank), layout.kv_heads(rank));
                all += heads.len();
                let mut next = 0;
                for run in layout.runs(rank) {
                    assert_eq!(run.head, next);
                    next += run.heads;
                    assert_eq!(run.heads % run.kv_heads, 0);
                    for head in 0..run.heads {
                        let inside = kv.start + run.kv_head + head / (run.heads / run.kv_heads);
                        assert_eq!(inside, (heads.start + run.head + head) / group);
                    }
                }
                assert_eq!(next, heads.len());
            }
            assert_eq!(all, kv_heads * group);
        }
    }

    #[test]
    fn what_divides_is_shared_alike_whatever_the_split() {
        for (ranks, heads, kv) in [(4, 8, 4), (4, 8, 2), (2, 12, 4), (8, 8, 1)] {
            let layouts = Split::ALL.map(|split| HeadLayout::new(split, ranks, heads, kv).unwrap());
            for rank in 0..ranks {
                assert_eq!(layouts[0].heads(rank), layouts[1].heads(rank));
                assert_eq!(layouts[0].kv_heads(rank), layouts[1].kv_heads(rank));
            }
        }
    }
}
