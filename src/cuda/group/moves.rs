//! What an exchange comes down to: messages, and copies before and after them.

use core::hash::Hash;
use core::ptr::NonNull;

use attn_runtime::comm::StridedBox;
use attn_runtime::device::StridedCopy;
use attn_runtime::tensor::contiguous_strides;
use attn_runtime::{Error, Result, Transfer};

use super::known::{Moves, digest};
use super::staging::ALIGN;
use crate::cuda::launches::Launches;
use crate::cuda::nccl::{Message, at};

/// The steps of one exchange. Kept from call to call for its memory.
#[derive(Default)]
pub(super) struct Steps {
    /// Out of tensors into staging memory.
    pub(super) packs: Vec<StridedCopy>,
    /// Within this rank.
    pub(super) own: Vec<StridedCopy>,
    pub(super) messages: Vec<Message>,
    /// Out of staging memory into tensors.
    pub(super) unpacks: Vec<StridedCopy>,
}

// SAFETY: the addresses are only used within the call that put them there.
unsafe impl Send for Steps {}

/// Where in staging memory the next piece goes.
struct Cursor {
    base: NonNull<u8>,
    used: usize,
}

impl Cursor {
    fn next(&mut self, bytes: usize) -> *mut u8 {
        let place = at(self.base, self.used);
        self.used += bytes.next_multiple_of(ALIGN);
        place
    }
}

/// Bytes of a box.
fn bytes_of(part: &StridedBox) -> usize {
    part.extent.iter().fold(part.item, |bytes, axis| bytes.saturating_mul(*axis))
}

/// Whether a box is one run of memory.
pub(super) fn is_run(extent: [usize; 4], strides: [usize; 4]) -> bool {
    let dense = contiguous_strides(extent);
    (0..4).all(|axis| extent[axis] <= 1 || strides[axis] == dense[axis])
}

/// The same box, dense, somewhere else.
fn dense(part: &StridedBox, base: *mut u8) -> StridedBox {
    StridedBox { base, strides: contiguous_strides(part.extent), ..*part }
}

/// The boxes that go to a rank, or come from it, that hold anything: of all transfers, in order.
fn boxes<'t, D: Launches>(
    transfers: &'t [Transfer<'_, D>],
    peer: usize,
    goes: bool,
) -> impl Iterator<Item = StridedBox> + 't {
    let of = move |transfer: &'t Transfer<'_, D>| {
        let (out, into) = (goes.then(|| transfer.outgoing(peer)), (!goes).then(|| transfer.incoming(peer)));
        out.into_iter().flatten().chain(into.into_iter().flatten())
    };
    transfers.iter().flat_map(of).filter(|part| bytes_of(part) > 0)
}

/// The one box that goes to each rank, or comes from it, if each has one of so many bytes.
fn even_boxes<D: Launches>(transfers: &[Transfer<'_, D>], size: usize, goes: bool) -> Option<usize> {
    let bytes = |peer| {
        let mut boxes = boxes(transfers, peer, goes);
        let first = boxes.next()?;
        boxes.next().is_none().then(|| bytes_of(&first))
    };
    let first = bytes(0)?;
    (1..size).all(|peer| bytes(peer) == Some(first)).then_some(first)
}

/// Bytes to and from each rank, this one included, if each has one box of as many.
pub(super) fn moves_even<D: Launches>(transfers: &[Transfer<'_, D>], size: usize) -> Option<usize> {
    even_boxes(transfers, size, true).filter(|bytes| even_boxes(transfers, size, false) == Some(*bytes))
}

/// What ranks compare.
pub(super) fn moves<D: Launches>(transfers: &[Transfer<'_, D>], size: usize, can_all_to_all: bool) -> Moves {
    let list = |goes: bool| {
        let of = |peer| boxes(transfers, peer, goes).map(numbers).collect();
        (0..size).map(of).collect::<Vec<Vec<_>>>()
    };
    let even = moves_even(transfers, size).filter(|_| can_all_to_all).unwrap_or(0) as u64;
    Moves { shape: Vec::new(), boxes: [list(true), list(false)], even }
}

/// A number for the same, without a list.
pub(super) fn moves_digest<D: Launches>(transfers: &[Transfer<'_, D>], size: usize) -> u64 {
    digest(|hasher| {
        for (peer, goes) in (0..size).flat_map(|peer| [(peer, true), (peer, false)]) {
            (peer, goes).hash(hasher);
            boxes(transfers, peer, goes).for_each(|part| numbers(part).hash(hasher));
        }
    })
}

fn numbers(part: StridedBox) -> [u64; 5] {
    let [a, b, c, d] = part.extent;
    [part.item, a, b, c, d].map(|number| number as u64)
}

/// How much staging memory an exchange needs: a place for each box that is not one run of memory.
pub(super) fn staging_bytes<D: Launches>(
    transfers: &[Transfer<'_, D>],
    me: usize,
    size: usize,
) -> Result<usize> {
    let others = (0..size).filter(|peer| *peer != me);
    let staged = others.flat_map(|peer| boxes(transfers, peer, true).chain(boxes(transfers, peer, false)));
    let staged = staged.filter(|part| !is_run(part.extent, part.strides));
    sum(staged.map(|part| bytes_of(&part)))
}

/// Bytes of pieces of staging memory.
pub(super) fn sum(mut pieces: impl Iterator<Item = usize>) -> Result<usize> {
    let add = |sum: usize, bytes: usize| sum.checked_add(bytes.checked_next_multiple_of(ALIGN)?);
    let total = pieces.try_fold(0, add);
    total.ok_or_else(|| Error::Plan(String::from("an exchange of more bytes than can be addressed")))
}

impl Steps {
    fn clear(&mut self) {
        self.packs.clear();
        self.own.clear();
        self.messages.clear();
        self.unpacks.clear();
    }

    /// The steps by sends and receives: a message for each box, in the order that both of its ends know. Boxes that are one run
    /// of memory go from where they lie to where they belong, others by way of `staging`. `members` are the ranks' numbers in
    /// the world, for the error.
    pub(super) fn by_messages<D: Launches>(
        &mut self,
        transfers: &[Transfer<'_, D>],
        me: usize,
        members: &[usize],
        staging: NonNull<u8>,
    ) -> Result<()> {
        self.clear();
        let size = members.len();
        let mut cursor = Cursor { base: staging, used: 0 };
        self.add_own(transfers, me, members[me])?;
        // Each rank begins with the next one, so that not all send to the same one at once.
        for hop in 1..size {
            let to = (me + hop) % size;
            for part in boxes(transfers, to, true) {
                let bytes = bytes_of(&part);
                let mut data = part.base;
                if !is_run(part.extent, part.strides) {
                    data = cursor.next(bytes);
                    self.packs.push(part.copy_to(&dense(&part, data)));
                }
                self.messages.push(Message::Send { to, data, bytes });
            }
            let from = (me + size - hop) % size;
            for part in boxes(transfers, from, false) {
                let bytes = bytes_of(&part);
                let mut data = part.base;
                if !is_run(part.extent, part.strides) {
                    data = cursor.next(bytes);
                    self.unpacks.push(dense(&part, data).copy_to(&part));
                }
                self.messages.push(Message::Receive { from, data, bytes });
            }
        }
        Ok(())
    }

    /// What stays on this rank is copied straight. `number` is its number in the world.
    fn add_own<D: Launches>(
        &mut self,
        transfers: &[Transfer<'_, D>],
        me: usize,
        number: usize,
    ) -> Result<()> {
        for transfer in transfers {
            let (mut out, mut into) = (transfer.outgoing(me), transfer.incoming(me));
            loop {
                match (out.next(), into.next()) {
                    (None, None) => break,
                    (Some(from), Some(to)) if from.extent == to.extent && from.item == to.item => {
                        self.own.push(from.copy_to(&to));
                    }
                    (from, to) => {
                        let extent = |part: Option<StridedBox>| part.map(|part| part.extent);
                        let (from, to) = (extent(from), extent(to));
                        return Err(Error::Plan(format!(
                            "rank {number} sends {from:?} to rank {number}, which expects {to:?}"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// The steps where every rank sends one box of as many bytes to every rank: where they are read and written by NCCL,
    /// from rank 0's on, one behind the other.
    pub(super) fn by_all_to_all<D: Launches>(
        &mut self,
        transfers: &[Transfer<'_, D>],
        size: usize,
        bytes: usize,
        staging: NonNull<u8>,
    ) -> (*const u8, *mut u8) {
        self.clear();
        let mut used = 0;
        let mut side = |goes: bool, copies: &mut Vec<StridedCopy>| {
            if let Some(base) = in_place(transfers, size, goes, bytes) {
                return base;
            }
            let base = at(staging, used);
            used += (size * bytes).next_multiple_of(ALIGN);
            for (peer, part) in
                (0..size).flat_map(|peer| boxes(transfers, peer, goes).map(move |part| (peer, part)))
            {
                let there = dense(&part, base.wrapping_add(peer * bytes));
                copies.push(if goes { part.copy_to(&there) } else { there.copy_to(&part) });
            }
            base
        };
        let from = side(true, &mut self.packs);
        (from.cast_const(), side(false, &mut self.unpacks))
    }
}

/// How much staging memory [`Steps::by_all_to_all`] needs.
pub(super) fn all_to_all_staging<D: Launches>(
    transfers: &[Transfer<'_, D>],
    size: usize,
    bytes: usize,
) -> Result<usize> {
    let staged = [true, false].into_iter().filter(|goes| in_place(transfers, size, *goes, bytes).is_none());
    sum(staged.map(|_| size.saturating_mul(bytes)))
}

/// Where the boxes of one side stand, if they are runs of memory one behind the other.
fn in_place<D: Launches>(
    transfers: &[Transfer<'_, D>],
    size: usize,
    goes: bool,
    bytes: usize,
) -> Option<*mut u8> {
    let base = boxes(transfers, 0, goes).next()?.base;
    let stands = |peer: usize| {
        let part = boxes(transfers, peer, goes).next();
        part.is_some_and(|part| {
            is_run(part.extent, part.strides) && part.base == base.wrapping_add(peer * bytes)
        })
    };
    (0..size).all(stands).then_some(base)
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use attn_runtime::ExchangePlan;
    use attn_runtime::tensor::{View, ViewMut};

    use super::*;
    use crate::cuda::Simulated;

    /// What edges have packed is sent from where it is; the same boxes in a caller's tensor are packed first.
    #[test]
    fn packed_boxes_are_not_packed_again() {
        let mut plan = ExchangePlan::default();
        // Two ranks, of which this is the first: three positions of two heads out of four.
        plan.send(1, [0, 0, 2, 0], [2, 3, 2, 8]);
        plan.receive(1, [0, 3, 0, 0], [2, 3, 2, 8]);
        let (source, mut target) = ([0_u8; 2 * 3 * 4 * 8], [0_u8; 2 * 6 * 2 * 8]);
        let there = |shape| {
            let base = NonNull::from(&source).cast::<u8>();
            // SAFETY: the array is long enough for both shapes below, and nobody writes it.
            unsafe { View::<u8, Simulated>::from_raw_parts(base, shape, contiguous_strides(shape)) }
        };
        let shape = [2, 6, 2, 8];
        let base = NonNull::from(&mut target).cast::<u8>();
        let to = || {
            // SAFETY: the array has this shape; nothing is written.
            unsafe { ViewMut::<u8, Simulated>::from_raw_parts(base, shape, contiguous_strides(shape)) }
        };
        let mut steps = Steps::default();
        let mut staging = |transfer: Transfer<'_, Simulated>| {
            let transfers = [transfer];
            steps.by_messages(&transfers, 0, &[0, 1], NonNull::dangling()).unwrap();
            let sent = steps.messages.iter().find_map(|message| match message {
                Message::Send { data, .. } => Some(*data),
                Message::Receive { .. } => None,
            });
            (steps.packs.len(), sent.unwrap(), staging_bytes(&transfers, 0, 2).unwrap())
        };
        let (packs, _, plain) = staging(Transfer::new(&plan, there([2, 3, 4, 8]), to()).unwrap());
        assert_eq!(packs, 1);
        let packed = there([1, 1, 1, plan.elements_sent()]);
        let (packs, sent, less) = staging(Transfer::packed(&plan, packed, to()).unwrap());
        assert_eq!((packs, sent), (0, packed.base().as_ptr().cast_const()));
        // What comes is staged either way.
        assert_eq!((plain, less), (2 * ALIGN, ALIGN));
    }
}
