//! Axis orders of a 4-D attention tensor.

use core::fmt;

/// The order in which a tensor's four axes are numbered.
///
/// A layout is named by two axis numbers, as DeepSpeed-Ulysses names them: `scatter`, the axis that the exchange
/// before the kernel scatters (heads), and `gather`, the axis that it gathers (sequence). Head dim is always
/// axis 3; batch is the axis left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorLayout {
    /// `(scatter, gather) = (2, 1)`: `[batch, seq, heads, head_dim]`.
    Bshd,
    /// `(scatter, gather) = (1, 2)`: `[batch, heads, seq, head_dim]`.
    Bhsd,
    /// `(scatter, gather) = (2, 0)`: `[seq, batch, heads, head_dim]`.
    Sbhd,
}

impl TensorLayout {
    /// Every layout.
    pub const ALL: [Self; 3] = [Self::Bshd, Self::Bhsd, Self::Sbhd];

    /// The layout that a pair of axis numbers names, if it names one.
    pub const fn from_axes(scatter: usize, gather: usize) -> Option<Self> {
        match (scatter, gather) {
            (2, 1) => Some(Self::Bshd),
            (1, 2) => Some(Self::Bhsd),
            (2, 0) => Some(Self::Sbhd),
            _ => None,
        }
    }

    /// Like [`from_axes`](Self::from_axes), for axis numbers that are constants of a type.
    ///
    /// # Panics
    /// While compiling, if the pair names no layout.
    pub const fn of<const SCATTER: usize, const GATHER: usize>() -> Self {
        match Self::from_axes(SCATTER, GATHER) {
            Some(layout) => layout,
            None => panic!("(SCATTER, GATHER) names no layout: expected (2, 1), (1, 2) or (2, 0)"),
        }
    }

    /// `(scatter, gather)`: the numbers of the head axis and of the sequence axis.
    pub const fn axes(self) -> (usize, usize) {
        match self {
            Self::Bshd => (2, 1),
            Self::Bhsd => (1, 2),
            Self::Sbhd => (2, 0),
        }
    }

    /// Where each axis of `[batch, seq, heads, head_dim]` stands in this layout.
    ///
    /// Every layout of [`ALL`](Self::ALL) is its own inverse, so the same table leads back.
    pub const fn order(self) -> [usize; 4] {
        match self {
            Self::Bshd => [0, 1, 2, 3],
            Self::Bhsd => [0, 2, 1, 3],
            Self::Sbhd => [1, 0, 2, 3],
        }
    }

    /// A shape in `[batch, seq, heads, head_dim]` order, written in this layout's order (and back).
    pub const fn permute(self, shape: [usize; 4]) -> [usize; 4] {
        let order = self.order();
        [shape[order[0]], shape[order[1]], shape[order[2]], shape[order[3]]]
    }
}

impl fmt::Display for TensorLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bshd => "[batch, seq, heads, head_dim]",
            Self::Bhsd => "[batch, heads, seq, head_dim]",
            Self::Sbhd => "[seq, batch, heads, head_dim]",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_lead_back_to_the_layout() {
        for layout in TensorLayout::ALL {
            let (scatter, gather) = layout.axes();
            assert_eq!(TensorLayout::from_axes(scatter, gather), Some(layout));
        }
    }

    #[test]
    fn only_three_pairs_of_axes_are_layouts() {
        let named = (0..5).flat_map(|s| (0..5).map(move |g| (s, g)));
        assert_eq!(named.filter(|&(s, g)| TensorLayout::from_axes(s, g).is_some()).count(), 3);
    }

    #[test]
    fn the_order_puts_heads_and_sequence_where_the_axes_say() {
        for layout in TensorLayout::ALL {
            let (scatter, gather) = layout.axes();
            assert_eq!(layout.order()[2], scatter);
            assert_eq!(layout.order()[1], gather);
            assert_eq!(layout.permute(layout.permute([2, 3, 5, 7])), [2, 3, 5, 7]);
        }
    }
}
