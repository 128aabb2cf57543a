//! How lengths and heads are shared among ranks.

use core::ops::Range;

/// Whether shares must be equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Split {
    /// Every rank has as much as any other; what does not divide is refused.
    #[default]
    Strict,
    /// Shares may differ, and may be empty. Nothing is padded.
    Uneven,
}

impl Split {
    /// Every split.
    pub const ALL: [Self; 2] = [Self::Strict, Self::Uneven];

    /// The name: `strict` or `uneven`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Uneven => "uneven",
        }
    }
}

/// The `part`-th of `parts` nearly equal, consecutive parts of `0..length`: the first `length % parts` of them are one
/// longer than the others.
///
/// ```
/// use attn_plan::portion;
///
/// let lengths: Vec<usize> = (0..8).map(|part| portion(30, 8, part).len()).collect();
/// assert_eq!(lengths, [4, 4, 4, 4, 4, 4, 3, 3]);
/// ```
///
/// # Panics
/// If there is no such part.
pub const fn portion(length: usize, parts: usize, part: usize) -> Range<usize> {
    assert!(part < parts, "there are fewer parts");
    let (each, longer) = (length / parts, length % parts);
    let start = part * each + if part < longer { part } else { longer };
    start..start + each + (part < longer) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_cover_without_overlap() {
        for (length, parts) in [(8, 3), (2, 5), (0, 2), (7, 7), (30, 8)] {
            let all: Vec<usize> = (0..parts).flat_map(|part| portion(length, parts, part)).collect();
            assert_eq!(all, (0..length).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_portions_are_the_longer_ones() {
        let lengths = |length, parts| (0..parts).map(|p| portion(length, parts, p).len()).collect::<Vec<_>>();
        assert_eq!(lengths(7, 2), [4, 3]);
        assert_eq!(lengths(14, 4), [4, 4, 3, 3]);
        assert_eq!(lengths(2, 4), [1, 1, 0, 0]);
    }
}
