//! Which rank holds which positions and computes which heads.

use core::fmt;
use core::ops::Range;

use crate::heads::{HeadSplitError, KvGroupError, check_head_split, check_kv_group, list};
use crate::positions::{Positions, Run};
use crate::split::{Split, portion};

/// In which order a ring shares the sequence out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RingLayout {
    /// Each ring rank holds one stretch. Under a causal mask later ranks have more to do.
    #[default]
    Contiguous,
    /// Of twice as many stretches as ring ranks, rank `r` holds number `r` from the front and number `r` from the back:
    /// under a causal mask all have the same to do.
    Zigzag,
    /// Position `t` belongs to ring rank `t` modulo their number.
    Striped,
}

impl RingLayout {
    /// Every layout.
    pub const ALL: [Self; 3] = [Self::Contiguous, Self::Zigzag, Self::Striped];

    /// The name: `contiguous`, `zigzag` or `striped`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Contiguous => "contiguous",
            Self::Zigzag => "zigzag",
            Self::Striped => "striped",
        }
    }
}

/// How a group of ranks shares attention: `ulysses` times `outer` ranks, of which `ulysses` neighbours exchange
/// sequence for heads, and `outer` groups of them share the sequence (a ring, or ranks that gather keys).
///
/// Rank `p` is number `p % ulysses` of its Ulysses group and number `p / ulysses` of its outer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sharding {
    /// How many ranks share the heads.
    pub ulysses: usize,
    /// How many groups of such ranks share the sequence.
    pub outer: usize,
    /// In which order these share it.
    pub layout: RingLayout,
    /// Whether shares must be equal.
    pub split: Split,
}

impl Sharding {
    /// One rank, which holds everything.
    pub const ONE: Self = Self { ulysses: 1, outer: 1, layout: RingLayout::Contiguous, split: Split::Strict };

    /// How many ranks there are.
    pub const fn ranks(&self) -> usize {
        self.ulysses * self.outer
    }

    /// The number of a rank in its Ulysses group and in its outer group.
    pub const fn place(&self, rank: usize) -> (usize, usize) {
        (rank % self.ulysses, rank / self.ulysses)
    }

    /// The rank at a place.
    pub const fn rank(&self, ulysses: usize, outer: usize) -> usize {
        outer * self.ulysses + ulysses
    }

    /// Who holds which of `seq` positions.
    ///
    /// # Errors
    /// If the split is strict and they do not divide.
    pub fn sequence(self, seq: usize) -> Result<SequenceLayout, SeqSplitError> {
        SequenceLayout::new(self, seq)
    }

    /// Who computes which heads.
    ///
    /// # Errors
    /// If `kv_heads` does not divide `heads`, or the split is strict and they do not divide among the Ulysses ranks.
    pub fn heads(self, heads: usize, kv_heads: usize) -> Result<HeadLayout, HeadError> {
        HeadLayout::new(self.split, self.ulysses, heads, kv_heads)
    }
}

/// Who holds which positions of a sequence, outside the kernel and inside it: a function of numbers that all ranks
/// know, never of a collective.
///
/// ```
/// use attn_plan::{RingLayout, Sharding, Split};
///
/// // A ring of four, zigzag, over 16 positions.
/// let sharding = Sharding { ulysses: 1, outer: 4, layout: RingLayout::Zigzag, split: Split::Strict };
/// let layout = sharding.sequence(16)?;
/// assert_eq!(layout.positions(1).iter().collect::<Vec<_>>(), [2, 3, 12, 13]);
/// // All ranks' positions one after the other: the order in which to lay out a tensor, or a table of rotary angles,
/// // so that each rank's share is one stretch of it.
/// assert_eq!(layout.order()[..4], [0, 1, 14, 15]);
/// # Ok::<(), attn_plan::SeqSplitError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceLayout {
    sharding: Sharding,
    seq: usize,
}

impl SequenceLayout {
    /// [`Sharding::sequence`].
    ///
    /// # Errors
    /// As there.
    pub fn new(sharding: Sharding, seq: usize) -> Result<Self, SeqSplitError> {
        let (ranks, outer) = (sharding.ranks(), sharding.outer);
        let chunks = if sharding.layout == RingLayout::Zigzag { 2 * outer } else { 1 };
        let divides = seq.is_multiple_of(ranks) && seq.is_multiple_of(chunks);
        if sharding.split == Split::Strict && !divides {
            return Err(SeqSplitError { seq, sharding });
        }
        Ok(Self { sharding, seq })
    }

    /// How the ranks share it.
    pub const fn sharding(&self) -> Sharding {
        self.sharding
    }

    /// The length of the whole sequence.
    pub const fn seq(&self) -> usize {
        self.seq
    }

    /// The positions that the ranks of outer number `outer` hold together, in the order in which the kernel sees them.
    ///
    /// # Panics
    /// If there is no such number.
    pub fn part(&self, outer: usize) -> Positions {
        let Sharding { outer: parts, layout, .. } = self.sharding;
        assert!(outer < parts, "the layout has fewer ranks");
        match layout {
            RingLayout::Contiguous => Positions::from(Run::of(portion(self.seq, parts, outer))),
            RingLayout::Zigzag => {
                let chunk = |chunk| Run::of(portion(self.seq, 2 * parts, chunk));
                Positions::of(chunk(outer), chunk(2 * parts - 1 - outer))
            }
            RingLayout::Striped => {
                let len = self.seq.saturating_sub(outer).div_ceil(parts);
                Positions::from(Run { start: outer, step: parts, len })
            }
        }
    }

    /// Which of its part's positions, by their index there, a rank holds outside the kernel.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn within_part(&self, rank: usize) -> Range<usize> {
        let (ulysses, outer) = self.sharding.place(rank);
        portion(self.part(outer).len(), self.sharding.ulysses, ulysses)
    }

    /// The positions that a rank holds outside the kernel, in order: those of its shard.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn positions(&self, rank: usize) -> Positions {
        self.part(self.sharding.place(rank).1).slice(self.within_part(rank))
    }

    /// How many positions a rank holds outside the kernel.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn length(&self, rank: usize) -> usize {
        self.within_part(rank).len()
    }

    /// All ranks' positions, one rank after the other: element `i` is the position that stands `i`-th.
    pub fn order(&self) -> Vec<usize> {
        (0..self.sharding.ranks()).flat_map(|rank| self.positions(rank).iter().collect::<Vec<_>>()).collect()
    }

    /// The inverse of [`order`](Self::order): element `t` is the place of position `t` there.
    pub fn inverse_order(&self) -> Vec<usize> {
        let mut inverse = vec![0; self.seq];
        for (place, position) in self.order().into_iter().enumerate() {
            inverse[position] = place;
        }
        inverse
    }
}

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
    /// If `kv_heads` does not divide `heads`, or the split is strict and they do not divide among the ranks.
    pub fn new(split: Split, ranks: usize, heads: usize, kv_heads: usize) -> Result<Self, HeadError> {
        check_kv_group(heads, kv_heads)?;
        if split == Split::Strict {
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

/// A sequence that does not divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqSplitError {
    /// The length of the whole sequence.
    pub seq: usize,
    /// How it was to be shared.
    pub sharding: Sharding,
}

impl fmt::Display for SeqSplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More numbers help nobody.
        const MOST: usize = 1024;
        let Self { seq, sharding } = self;
        let ranks = sharding.ranks();
        let uneven = "or use `split = \"uneven\"`";
        if !seq.is_multiple_of(ranks) {
            let numbers: Vec<usize> = (1..=MOST).filter(|ranks| seq.is_multiple_of(*ranks)).collect();
            let would = "numbers of ranks that would do are";
            return write!(
                f,
                "{seq} positions do not divide among {ranks} ranks: {would} {}; {uneven}",
                list(&numbers)
            );
        }
        let ring = sharding.outer;
        let rings: Vec<usize> = (1..=MOST).filter(|ring| seq.is_multiple_of(2 * *ring)).collect();
        write!(
            f,
            "{seq} positions do not divide into the {} stretches of a zigzag ring of {ring}: rings that would do are \
             of {}; {uneven}",
            2 * ring,
            list(&rings)
        )
    }
}

impl core::error::Error for SeqSplitError {}

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

    fn sharding(ulysses: usize, outer: usize, layout: RingLayout, split: Split) -> Sharding {
        Sharding { ulysses, outer, layout, split }
    }

    #[track_caller]
    fn check(ulysses: usize, outer: usize, layout: RingLayout, expected: &[&[usize]]) {
        let layout = sharding(ulysses, outer, layout, Split::Strict).sequence(16).unwrap();
        for (rank, expected) in expected.iter().enumerate() {
            assert_eq!(layout.positions(rank).iter().collect::<Vec<_>>(), *expected, "rank {rank}");
        }
    }

    #[test]
    fn rings_share_the_sequence_in_the_order_of_their_layout() {
        let contiguous: [&[usize]; 4] = [&[0, 1, 2, 3], &[4, 5, 6, 7], &[8, 9, 10, 11], &[12, 13, 14, 15]];
        check(2, 2, RingLayout::Contiguous, &contiguous);
        check(1, 4, RingLayout::Zigzag, &[&[0, 1, 14, 15], &[2, 3, 12, 13], &[4, 5, 10, 11], &[6, 7, 8, 9]]);
        check(2, 2, RingLayout::Zigzag, &[&[0, 1, 2, 3], &[12, 13, 14, 15], &[4, 5, 6, 7], &[8, 9, 10, 11]]);
        check(1, 4, RingLayout::Striped, &[&[0, 4, 8, 12], &[1, 5, 9, 13], &[2, 6, 10, 14], &[3, 7, 11, 15]]);
        check(2, 2, RingLayout::Striped, &[&[0, 2, 4, 6], &[8, 10, 12, 14], &[1, 3, 5, 7], &[9, 11, 13, 15]]);
    }

    #[test]
    fn every_position_belongs_to_one_rank_however_short_the_sequence() {
        for layout in RingLayout::ALL {
            for (ulysses, outer) in [(1, 1), (3, 1), (1, 3), (2, 3), (4, 2), (1, 8)] {
                for seq in 0..40 {
                    let layout = sharding(ulysses, outer, layout, Split::Uneven).sequence(seq).unwrap();
                    let mut order = layout.order();
                    let inverse = layout.inverse_order();
                    assert!(order.iter().enumerate().all(|(place, &t)| inverse[t] == place));
                    order.sort_unstable();
                    assert_eq!(order, (0..seq).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn a_strict_split_refuses_what_does_not_divide_and_says_what_would() {
        let said = |ulysses, outer, layout, seq| {
            sharding(ulysses, outer, layout, Split::Strict).sequence(seq).unwrap_err().to_string()
        };
        let error = said(2, 2, RingLayout::Contiguous, 10);
        assert!(error.contains("10 positions") && error.contains("are 1, 2, 5 and 10; or use"), "{error}");
        let error = said(1, 4, RingLayout::Zigzag, 12);
        assert!(error.contains("8 stretches") && error.contains("of 1, 2, 3 and 6"), "{error}");
    }

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
