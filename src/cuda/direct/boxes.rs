//! The boxes of one call, peer by peer, as the kernels take them.

use attn_runtime::comm::StridedBox;
use attn_runtime::{Error, Result};

use crate::cuda::abi::{EXCHANGE_RANKS, ExchangeBox};
use crate::cuda::layout::unsupported;

/// The kernels count the elements of a box, and their vectors, below this.
const BYTES_END: usize = 1 << 31;

/// What goes and what comes. Peers are added in ascending order.
#[derive(Default)]
pub(super) struct Boxes {
    outgoing: List,
    incoming: List,
}

#[derive(Default)]
struct List {
    boxes: Vec<ExchangeBox>,
    of: [u32; EXCHANGE_RANKS],
}

// SAFETY: the addresses are only used within the call that put them there.
unsafe impl Send for Boxes {}

impl Boxes {
    pub(super) fn clear(&mut self) {
        for list in [&mut self.outgoing, &mut self.incoming] {
            list.boxes.clear();
            list.of = [0; EXCHANGE_RANKS];
        }
    }

    /// Adds boxes that go to a rank.
    pub(super) fn send(&mut self, peer: usize, boxes: impl Iterator<Item = StridedBox>) -> Result<()> {
        self.outgoing.extend(peer, boxes)
    }

    /// Adds boxes that come from a rank.
    pub(super) fn receive(&mut self, peer: usize, boxes: impl Iterator<Item = StridedBox>) -> Result<()> {
        self.incoming.extend(peer, boxes)
    }

    pub(super) fn outgoing(&self) -> &[ExchangeBox] {
        &self.outgoing.boxes
    }

    pub(super) fn incoming(&self) -> &[ExchangeBox] {
        &self.incoming.boxes
    }

    pub(super) fn sends(&self) -> [u32; EXCHANGE_RANKS] {
        self.outgoing.of
    }

    pub(super) fn receives(&self) -> [u32; EXCHANGE_RANKS] {
        self.incoming.of
    }
}

impl List {
    fn extend(&mut self, peer: usize, boxes: impl Iterator<Item = StridedBox>) -> Result<()> {
        for part in boxes {
            if !matches!(part.item, 1 | 2 | 4 | 8 | 16) {
                let what = format!("elements of {} bytes", part.item);
                return Err(unsupported("exchange", what, "it takes 1, 2, 4, 8 and 16"));
            }
            if !part.base.addr().is_multiple_of(part.item) && !part.extent.contains(&0) {
                let what = format!("address {:#x}", part.base.addr());
                return Err(Error::Misaligned { tensor: "box", what, needed: part.item });
            }
            self.cut(peer, part);
        }
        Ok(())
    }

    /// Adds a box in as many parts as it needs, none if it is empty. Where it is cut follows from its extent, which both
    /// of its ranks know.
    fn cut(&mut self, peer: usize, part: StridedBox) {
        let StridedBox { base, item, extent, strides } = part;
        if extent.contains(&0) {
            return;
        }
        let bytes = extent.iter().fold(item, |bytes, &axis| bytes.saturating_mul(axis));
        if bytes < BYTES_END {
            let strides = strides.map(|stride| stride as u64);
            // Below 2^31, by the line above.
            let extent = extent.map(|axis| axis as u32);
            self.boxes.push(ExchangeBox {
                base: base.cast(),
                strides,
                extent,
                item: item as u32,
                reserved: 0,
            });
            self.of[peer] += 1;
            return;
        }
        // There is an axis longer than 1: an item is below 2^31 bytes.
        let axis = extent.iter().position(|&axis| axis > 1).unwrap_or_default();
        let half = extent[axis] / 2;
        let (mut low, mut high) = (part, part);
        low.extent[axis] = half;
        high.extent[axis] -= half;
        high.base = base.wrapping_add(half.wrapping_mul(strides[axis]).wrapping_mul(item));
        self.cut(peer, low);
        self.cut(peer, high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(extent: [usize; 4], item: usize) -> StridedBox {
        let base = core::ptr::without_provenance_mut(4096);
        StridedBox { base, item, extent, strides: attn_runtime::tensor::contiguous_strides(extent) }
    }

    #[test]
    fn boxes_stand_peer_by_peer_and_empty_ones_do_not() {
        let mut boxes = Boxes::default();
        boxes.send(0, [part([1, 2, 3, 4], 2), part([1, 0, 3, 4], 2)].into_iter()).unwrap();
        boxes.send(2, [part([5, 1, 1, 4], 4)].into_iter()).unwrap();
        assert_eq!(boxes.sends()[..4], [1, 0, 1, 0]);
        assert_eq!(boxes.outgoing().iter().map(|each| each.extent[0]).collect::<Vec<_>>(), [1, 5]);
        assert!(boxes.incoming().is_empty());
        boxes.clear();
        assert!(boxes.outgoing().is_empty() && boxes.sends() == [0; EXCHANGE_RANKS]);
    }

    #[test]
    fn a_box_of_2_to_the_31_bytes_is_cut_into_parts_that_cover_it() {
        let mut boxes = Boxes::default();
        let whole = part([1, 3, 1 << 20, 1 << 10], 2);
        boxes.receive(1, [whole].into_iter()).unwrap();
        let parts = boxes.incoming();
        let bytes = |each: &ExchangeBox| each.extent.iter().map(|&axis| axis as usize).product::<usize>() * 2;
        assert!(parts.len() > 1 && parts.iter().all(|each| bytes(each) < BYTES_END));
        assert_eq!(boxes.receives()[1] as usize, parts.len());
        let mut at = 4096;
        for each in parts {
            assert_eq!(each.base.addr(), at);
            at += bytes(each);
        }
        assert_eq!(at - 4096, 3 << 31);
    }

    #[test]
    fn odd_elements_and_addresses_are_refused_with_their_numbers() {
        let mut boxes = Boxes::default();
        let said = boxes.send(0, [part([1; 4], 12)].into_iter()).unwrap_err().to_string();
        assert!(said.contains("elements of 12 bytes"), "{said}");
        let odd = StridedBox { base: core::ptr::without_provenance_mut(4098), ..part([1; 4], 4) };
        let said = boxes.send(0, [odd].into_iter()).unwrap_err().to_string();
        assert!(said.contains("0x1002") && said.contains("4 bytes"), "{said}");
    }
}
