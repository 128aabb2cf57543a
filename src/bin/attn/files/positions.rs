//! Rows of a tensor by their positions, whatever the order of its axes.

use attn::{Cpu, Device, Error, Positions};

/// The axis of positions of a dense tensor: how many stretches of elements there are, of how many positions each, and how
/// many elements a position has in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PositionAxis {
    stretches: usize,
    positions: usize,
    width: usize,
}

impl PositionAxis {
    /// Of a tensor whose axes have these lengths, as stored.
    pub(super) fn of<const N: usize>(shape: [usize; N], axis: usize) -> Self {
        let volume = |axes: &[usize]| axes.iter().product();
        Self { stretches: volume(&shape[..axis]), positions: shape[axis], width: volume(&shape[axis + 1..]) }
    }

    /// The elements of some positions, in their order.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub(super) fn gather<T: Copy>(self, elements: &[T], positions: Positions) -> attn::Result<Vec<T>> {
        let Self { stretches, positions: all, width } = self;
        let count = stretches * positions.len() * width;
        let mut gathered = Vec::new();
        let bytes = count.saturating_mul(size_of::<T>());
        gathered.try_reserve_exact(count).map_err(|_| Error::OutOfMemory { device: Cpu::NAME, bytes })?;
        for stretch in 0..stretches {
            for position in positions.iter() {
                gathered.extend_from_slice(&elements[(stretch * all + position) * width..][..width]);
            }
        }
        Ok(gathered)
    }

    /// Puts positions from `first` on of another tensor, which differs in nothing but their number, to positions of this
    /// one.
    pub(super) fn scatter<T: Copy>(
        self,
        elements: &mut [T],
        positions: Positions,
        (from, first): (&[T], usize),
    ) {
        let Self { stretches, positions: all, width } = self;
        if stretches * width == 0 {
            return;
        }
        let its = from.len() / (stretches * width);
        for stretch in 0..stretches {
            for (index, position) in positions.iter().enumerate() {
                let source = &from[(stretch * its + first + index) * width..][..width];
                elements[(stretch * all + position) * width..][..width].copy_from_slice(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use attn::Run;

    use super::*;

    #[test]
    fn what_is_gathered_and_scattered_is_where_it_was() {
        let shape = [2, 5, 3, 4];
        let elements: Vec<usize> = (0..120).collect();
        for axis in 0..4 {
            let along = PositionAxis::of(shape, axis);
            let positions =
                Positions::of(Run { start: 0, step: 2, len: shape[axis].div_ceil(2) }, Run::EMPTY);
            let rest = Positions::from(Run { start: 1, step: 2, len: shape[axis] / 2 });
            let mut whole = vec![usize::MAX; 120];
            for positions in [positions, rest] {
                let part = along.gather(&elements, positions).unwrap();
                assert_eq!(part.len(), 120 / shape[axis] * positions.len());
                along.scatter(&mut whole, positions, (&part, 0));
            }
            assert_eq!(whole, elements);
        }
    }

    #[test]
    fn a_part_may_begin_with_others() {
        let mut to = [0; 6];
        PositionAxis::of([2, 3], 1).scatter(
            &mut to,
            Positions::from(Run::of(1..3)),
            (&[9, 1, 2, 9, 3, 4], 1),
        );
        assert_eq!(to, [0, 1, 2, 0, 3, 4]);
    }
}
