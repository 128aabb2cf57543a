//! Which rank holds which positions and computes which heads.

use core::fmt;
use core::ops::Range;

use crate::head_layout::{HeadError, HeadLayout};
use crate::heads::list;
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
        self.ulysses.saturating_mul(self.outer)
    }

    /// The number of a rank in its Ulysses group and in its outer group.
    ///
    /// # Panics
    /// If there are no ranks that share heads.
    pub const fn place(&self, rank: usize) -> (usize, usize) {
        (rank % self.ulysses, rank / self.ulysses)
    }

    /// The rank at a place.
    pub const fn rank(&self, ulysses: usize, outer: usize) -> usize {
        outer.saturating_mul(self.ulysses).saturating_add(ulysses)
    }

    /// Whether there are ranks, and no more than can be counted twice over (a zigzag ring has two stretches for each).
    fn has_ranks(&self) -> bool {
        let Self { ulysses, outer, .. } = *self;
        ulysses > 0 && outer > 0 && ulysses.checked_mul(outer).is_some_and(|ranks| ranks <= usize::MAX / 2)
    }

    /// Who holds which of `seq` positions.
    ///
    /// # Errors
    /// If the split is strict and they do not divide, or there are no ranks.
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
        if !sharding.has_ranks() {
            return Err(SeqSplitError { seq, sharding });
        }
        let (ranks, outer) = (sharding.ranks(), sharding.outer);
        // A ring of one holds both of its stretches, wherever they meet.
        let chunks = if sharding.layout == RingLayout::Zigzag && outer > 1 { 2 * outer } else { 1 };
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
    ///
    /// # Panics
    /// If there is not the memory for so many numbers.
    pub fn order(&self) -> Vec<usize> {
        (0..self.sharding.ranks()).flat_map(|rank| self.positions(rank).iter().collect::<Vec<_>>()).collect()
    }

    /// The inverse of [`order`](Self::order): element `t` is the place of position `t` there.
    ///
    /// # Panics
    /// As `order`.
    pub fn inverse_order(&self) -> Vec<usize> {
        let mut inverse = vec![0; self.seq];
        for (place, position) in self.order().into_iter().enumerate() {
            inverse[position] = place;
        }
        inverse
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
        if !sharding.has_ranks() {
            let Sharding { ulysses, outer, .. } = sharding;
            return write!(
                f,
                "{seq} positions cannot be shared by {ulysses} x {outer} ranks: both degrees must be at least 1, and \
                 their product no more than {}",
                usize::MAX / 2
            );
        }
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
        let would = |ring: &usize| *ring == 1 || seq.is_multiple_of(2 * *ring);
        let rings: Vec<usize> = (1..=MOST).filter(would).collect();
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
        let error = said(1, 3, RingLayout::Zigzag, 9);
        assert!(error.contains("6 stretches") && error.contains("are of 1; or"), "{error}");
    }

    #[test]
    fn a_ring_of_one_takes_any_length() {
        for (layout, ulysses) in RingLayout::ALL.into_iter().flat_map(|layout| [1, 3].map(|u| (layout, u))) {
            let layout = sharding(ulysses, 1, layout, Split::Strict).sequence(15).unwrap();
            assert_eq!(layout.order(), (0..15).collect::<Vec<_>>());
        }
    }
}
