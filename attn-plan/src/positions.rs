//! Positions of a sequence, in runs.

use core::ops::Range;

/// Positions at equal distances: `start`, `start + step`, and so on, `len` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The first position.
    pub start: usize,
    /// The distance between neighbours, at least 1.
    pub step: usize,
    /// How many there are.
    pub len: usize,
}

impl Run {
    /// No positions.
    pub const EMPTY: Self = Self { start: 0, step: 1, len: 0 };

    /// Consecutive positions.
    pub const fn of(range: Range<usize>) -> Self {
        Self { start: range.start, step: 1, len: range.end.saturating_sub(range.start) }
    }

    /// The positions of a stretch of its indices.
    #[must_use]
    pub const fn slice(self, indices: Range<usize>) -> Self {
        Self {
            start: self.start.saturating_add(indices.start.saturating_mul(self.step)),
            step: self.step,
            len: indices.end.saturating_sub(indices.start),
        }
    }

    /// How many of them, from the first on, lie before a position.
    pub const fn before(self, position: usize) -> usize {
        let step = if self.step == 0 { 1 } else { self.step };
        let count = position.saturating_sub(self.start).div_ceil(step);
        if count < self.len { count } else { self.len }
    }
}

/// Positions in order: one run, or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Positions {
    runs: [Run; 2],
}

impl From<Run> for Positions {
    fn from(run: Run) -> Self {
        Self { runs: [run, Run::EMPTY] }
    }
}

impl Positions {
    /// One run after another.
    pub const fn of(first: Run, second: Run) -> Self {
        Self { runs: [first, second] }
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.runs[0].len.saturating_add(self.runs[1].len)
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The runs that are not empty, each with the index of its first position.
    pub fn runs(&self) -> impl Iterator<Item = (usize, Run)> + Clone + use<> {
        let [first, second] = self.runs;
        [(0, first), (first.len, second)].into_iter().filter(|(_, run)| run.len > 0)
    }

    /// The positions themselves.
    pub fn iter(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        let at = |start: usize, step: usize, i: usize| start.saturating_add(i.saturating_mul(step));
        self.runs
            .into_iter()
            .flat_map(move |Run { start, step, len }| (0..len).map(move |i| at(start, step, i)))
    }

    /// A stretch of them, by index.
    ///
    /// # Panics
    /// If it reaches beyond them.
    #[must_use]
    pub fn slice(&self, indices: Range<usize>) -> Self {
        assert!(indices.start <= indices.end && indices.end <= self.len(), "no such positions");
        let [first, second] = self.runs;
        let cut = |run: Run, from: usize| {
            let inside = |index: usize| index.saturating_sub(from).min(run.len);
            run.slice(inside(indices.start)..inside(indices.end))
        };
        Self { runs: [cut(first, 0), cut(second, first.len)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_agree_with_slices_of_the_list() {
        let positions = Positions::of(Run { start: 1, step: 3, len: 4 }, Run::of(20..25));
        let all: Vec<usize> = positions.iter().collect();
        assert_eq!(all, [1, 4, 7, 10, 20, 21, 22, 23, 24]);
        for start in 0..=all.len() {
            for end in start..=all.len() {
                let slice = positions.slice(start..end);
                assert_eq!(slice.iter().collect::<Vec<_>>(), all[start..end]);
                assert_eq!(slice.runs().map(|(_, run)| run.len).sum::<usize>(), end - start);
            }
        }
    }

    #[test]
    fn before_counts_positions() {
        let run = Run { start: 2, step: 3, len: 4 };
        for position in 0..20 {
            let positions = Positions::from(run);
            assert_eq!(run.before(position), positions.iter().filter(|t| *t < position).count());
        }
    }
}
