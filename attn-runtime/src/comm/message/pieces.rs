//! Boxes cut into pieces, and pieces put together to messages: by their extents alone, so that who sends and who receives
//! cut alike.

use crate::comm::StridedBox;
use crate::device::StridedCopy;
use crate::tensor::contiguous_strides;

/// The boxes that go from one rank to another, as a row of messages of at most so many bytes (or of one element, if that
/// is more).
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    boxes: Vec<StridedBox>,
    limit: usize,
    /// The next piece: its box, and its number there.
    next: (usize, usize),
}

/// How a box is cut: along one axis, at each index of the axes outside of it.
struct Cut {
    axis: usize,
    /// How long the pieces are along the axis (the last one may be shorter).
    length: usize,
    /// How many pieces the axis gives.
    steps: usize,
    /// How many pieces there are in all.
    pieces: usize,
}

impl Cut {
    fn new(of: &StridedBox, limit: usize) -> Self {
        if of.extent.contains(&0) {
            return Self { axis: 0, length: 1, steps: 1, pieces: 0 };
        }
        let volume = |extents: &[usize]| extents.iter().fold(1_usize, |volume, n| volume.saturating_mul(*n));
        // The outermost axis of which one index is no more than a message.
        let inner = |axis: usize| volume(&of.extent[axis + 1..]).saturating_mul(of.item);
        let axis = (0..3).find(|axis| inner(*axis) <= limit).unwrap_or(3);
        let length = (limit / inner(axis).max(1)).clamp(1, of.extent[axis]);
        let steps = of.extent[axis].div_ceil(length);
        Self { axis, length, steps, pieces: volume(&of.extent[..axis]).saturating_mul(steps) }
    }

    fn piece(&self, of: &StridedBox, number: usize) -> StridedBox {
        let (mut outer, step) = (number / self.steps, number % self.steps);
        let mut offset = [0; 4];
        offset[self.axis] = step * self.length;
        let mut extent = of.extent;
        extent[self.axis] = self.length.min(of.extent[self.axis] - offset[self.axis]);
        for axis in (0..self.axis).rev() {
            offset[axis] = outer % of.extent[axis];
            outer /= of.extent[axis];
            extent[axis] = 1;
        }
        let elements: usize = (0..4).map(|axis| offset[axis] * of.strides[axis]).sum();
        StridedBox { base: of.base.wrapping_add(elements * of.item), extent, ..*of }
    }
}

impl Pieces {
    pub(super) const fn new(boxes: Vec<StridedBox>, limit: usize) -> Self {
        Self { boxes, limit, next: (0, 0) }
    }

    /// The boxes that are cut.
    pub(super) fn boxes(&self) -> &[StridedBox] {
        &self.boxes
    }

    /// The same boxes from the start, cut by another limit.
    pub(super) fn cut_by(&mut self, limit: usize) {
        (self.limit, self.next) = (limit, (0, 0));
    }

    /// Whether all messages have been taken.
    pub(super) fn is_done(&mut self) -> bool {
        while let Some(part) = self.boxes.get(self.next.0) {
            if self.next.1 < Cut::new(part, self.limit).pieces {
                return false;
            }
            self.next = (self.next.0 + 1, 0);
        }
        true
    }

    /// How many messages are left.
    pub(super) fn messages(&self) -> u64 {
        let (mut rest, mut message) = (self.clone(), Vec::new());
        core::iter::from_fn(|| rest.next(&mut message)).count() as u64
    }

    /// Puts the pieces of the next message into `message`, and says how many bytes they are together. None if there is no
    /// further one.
    pub(super) fn next(&mut self, message: &mut Vec<StridedBox>) -> Option<usize> {
        message.clear();
        let mut bytes = 0;
        while let Some(part) = self.boxes.get(self.next.0) {
            let cut = Cut::new(part, self.limit);
            if self.next.1 >= cut.pieces {
                self.next = (self.next.0 + 1, 0);
                continue;
            }
            let piece = cut.piece(part, self.next.1);
            let more = piece.bytes();
            if bytes > 0 && bytes + more > self.limit {
                break;
            }
            bytes += more;
            message.push(piece);
            self.next.1 += 1;
        }
        (!message.is_empty()).then_some(bytes)
    }
}

/// The copies of a message's pieces into dense memory, one behind the other, from `base` on.
pub(super) fn pack(message: &[StridedBox], base: *mut u8) -> impl Iterator<Item = StridedCopy> {
    dense(message, base).map(|(piece, packed)| piece.copy_to(&packed))
}

/// The copies of a message's pieces out of dense memory.
pub(super) fn unpack(message: &[StridedBox], base: *const u8) -> impl Iterator<Item = StridedCopy> {
    dense(message, base.cast_mut()).map(|(piece, packed)| packed.copy_to(piece))
}

/// Each piece, and where it stands in dense memory.
fn dense(message: &[StridedBox], base: *mut u8) -> impl Iterator<Item = (&StridedBox, StridedBox)> {
    message.iter().scan(0, move |bytes, piece| {
        let packed = StridedBox {
            base: base.wrapping_add(*bytes),
            strides: contiguous_strides(piece.extent),
            ..*piece
        };
        *bytes += piece.bytes();
        Some((piece, packed))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::cpu::CpuQueue;
    use crate::device::{Cpu, Device};

    /// A box of `u16` that count from `first` on, and the memory that it is in.
    fn numbered(extent: [usize; 4], first: u16, strides: [usize; 4]) -> (Vec<u16>, StridedBox) {
        let reach = (0..4).map(|axis| extent[axis].saturating_sub(1) * strides[axis]).sum::<usize>() + 1;
        let mut memory: Vec<u16> = (0..reach).map(|n| first.wrapping_add(n as u16)).collect();
        let base = memory.as_mut_ptr().cast();
        (memory, StridedBox { base, item: 2, extent, strides })
    }

    proptest! {
        #[test]
        fn what_is_cut_and_packed_is_unpacked_whole(
            extents in prop::collection::vec(prop::array::uniform4(0_usize..6), 0..4),
            limit in 1_usize..200,
        ) {
            let queue = CpuQueue::new(1).unwrap();
            // Sent from tensors with heads before positions, received into dense ones.
            let sent: Vec<_> = extents
                .iter()
                .zip(0..)
                .map(|(&[a, b, c, d], n)| {
                    numbered([a, b, c, d], 1000 * n + 1, [b * c * d, d, b * d, 1])
                })
                .collect();
            let received: Vec<_> =
                extents.iter().map(|&extent| numbered(extent, 0, contiguous_strides(extent))).collect();
            let boxes = |of: &[(Vec<u16>, StridedBox)]| of.iter().map(|(_, part)| *part).collect();
            let mut outgoing = Pieces::new(boxes(&sent), limit);
            let mut incoming = Pieces::new(boxes(&received), limit);
            let (mut out, mut into) = (Vec::new(), Vec::new());
            let mut left = outgoing.messages();
            while let Some(bytes) = outgoing.next(&mut out) {
                left -= 1;
                prop_assert_eq!(incoming.messages(), left + 1);
                prop_assert!(bytes <= limit.max(2));
                prop_assert!(!incoming.is_done());
                prop_assert_eq!(incoming.next(&mut into), Some(bytes));
                let mut packed = vec![0_u8; bytes];
                let copies: Vec<_> = pack(&out, packed.as_mut_ptr()).collect();
                // SAFETY: the boxes lie in the vectors above, the packed ones in `packed`, which is as long as they are.
                unsafe { Cpu::copy(&queue, &copies) }.unwrap();
                let copies: Vec<_> = unpack(&into, packed.as_ptr()).collect();
                // SAFETY: as above.
                unsafe { Cpu::copy(&queue, &copies) }.unwrap();
            }
            prop_assert!(incoming.is_done() && outgoing.is_done() && left == 0);
            prop_assert_eq!(incoming.next(&mut into), None);
            for (from, to) in sent.iter().zip(&received) {
                let [a, b, c, d] = from.1.extent;
                for index in (0..a * b * c * d).map(|n| [n / (b * c * d), n / (c * d) % b, n / d % c, n % d]) {
                    let at = |of: &(Vec<u16>, StridedBox)| {
                        of.0[(0..4).map(|axis| index[axis] * of.1.strides[axis]).sum::<usize>()]
                    };
                    prop_assert_eq!(at(from), at(to), "{:?}", index);
                }
            }
        }
    }

    #[test]
    fn boxes_of_more_than_can_be_counted_are_cut_one_by_one() {
        let base = core::ptr::NonNull::<u8>::dangling().as_ptr();
        let part = StridedBox { base, item: 4, extent: [usize::MAX, 3, usize::MAX, 5], strides: [0; 4] };
        let mut pieces = Pieces::new(vec![part], 1 << 19);
        let mut message = Vec::new();
        for _ in 0..10 {
            let bytes = pieces.next(&mut message).unwrap();
            assert!(bytes > 1 << 18 && bytes <= 1 << 19, "{bytes}");
        }
        assert!(!pieces.is_done());
        let none = StridedBox { extent: [usize::MAX, usize::MAX, 0, 5], ..part };
        assert!(Pieces::new(vec![none], 64).is_done());
    }
}
