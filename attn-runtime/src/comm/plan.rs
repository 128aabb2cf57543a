//! What goes where in an exchange: boxes, made once per shape, and the tensors that they cut, given at each call.

use core::marker::PhantomData;

use crate::comm::Signature;
use crate::device::{Device, StridedCopy};
use crate::error::{Error, Result};
use crate::tensor::{Element, Scalar, View, ViewMut, contiguous_strides};

/// A box inside a 4-D tensor, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// Its first index along each axis.
    pub offset: [usize; 4],
    /// Its length along each axis.
    pub extent: [usize; 4],
}

impl Region {
    fn fits(&self, shape: [usize; 4]) -> bool {
        (0..4).all(|axis| {
            self.offset[axis].checked_add(self.extent[axis]).is_some_and(|end| end <= shape[axis])
        })
    }

    /// Distance of the first element from the tensor's base, in elements. Zero for an empty box.
    fn start(&self, strides: [usize; 4]) -> usize {
        if self.extent.contains(&0) {
            return 0;
        }
        (0..4).map(|axis| self.offset[axis] * strides[axis]).sum()
    }
}

/// A box that goes to a rank or comes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Section {
    /// The other rank (or this one: then it is a copy).
    pub peer: usize,
    /// The box, in the source if it goes, in the destination if it comes.
    pub region: Region,
}

/// One rank's part in an exchange of one tensor: what goes to each rank and where what comes from each belongs.
///
/// The n-th box that rank p sends to rank r is the n-th that r receives from p; both have the same extent.
/// A plan holds no addresses and no strides: those are the tensors' own, given at each call, so that a plan serves
/// every layout and every call of one shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExchangePlan {
    /// Boxes of the source.
    pub sends: Vec<Section>,
    /// Boxes of the destination.
    pub receives: Vec<Section>,
}

impl ExchangePlan {
    /// Adds a box that goes to `peer`.
    pub fn send(&mut self, peer: usize, offset: [usize; 4], extent: [usize; 4]) {
        self.sends.push(Section { peer, region: Region { offset, extent } });
    }

    /// Adds a box that comes from `peer`.
    pub fn receive(&mut self, peer: usize, offset: [usize; 4], extent: [usize; 4]) {
        self.receives.push(Section { peer, region: Region { offset, extent } });
    }
}

/// Where a packed source has each box that goes: first elements, and sections in the order of the plan.
pub(crate) fn packed(sends: &[Section]) -> impl Iterator<Item = (usize, &Section)> {
    sends.iter().scan(0_usize, |next, section| {
        let start = *next;
        *next = next.saturating_add(elements(section.region.extent));
        Some((start, section))
    })
}

/// How many elements a box has; [`usize::MAX`] if they cannot be counted.
fn elements(extent: [usize; 4]) -> usize {
    if extent.contains(&0) { 0 } else { extent.iter().fold(1, |product, &axis| product.saturating_mul(axis)) }
}

impl ExchangePlan {
    /// How many elements go, to whomever: as many has a [packed](Transfer::packed) source.
    pub fn elements_sent(&self) -> usize {
        self.sends.iter().fold(0, |sum, section| sum.saturating_add(elements(section.region.extent)))
    }
}

/// A plan and the two tensors that it is carried out on, their element type forgotten.
pub struct Transfer<'a, D> {
    plan: &'a ExchangePlan,
    source: Strided,
    /// Whether the boxes that go stand in the source one behind the other, each dense, instead of where the plan says.
    packed: bool,
    destination: Strided,
    tensors: PhantomData<(&'a u8, &'a mut u8, fn() -> D)>,
}

/// A tensor without its type and its borrow.
#[derive(Clone, Copy, Debug)]
struct Strided {
    base: *mut u8,
    strides: [usize; 4],
    item: usize,
}

// SAFETY: the addresses are those of a `View` and a `ViewMut` of elements that are `Send` and `Sync`.
unsafe impl<D> Send for Transfer<'_, D> {}
// SAFETY: as above; through a shared transfer nothing is written (`copies` only describes writes).
unsafe impl<D> Sync for Transfer<'_, D> {}

impl<'a, D: Device> Transfer<'a, D> {
    /// Binds a plan to tensors.
    ///
    /// # Errors
    /// If a box of the plan lies outside its tensor.
    pub fn new<T: Scalar>(
        plan: &'a ExchangePlan,
        source: View<'a, T, D>,
        destination: ViewMut<'a, T, D>,
    ) -> Result<Self> {
        check_boxes(&plan.sends, source.shape(), "sent")?;
        Self::bind(plan, source, destination, false)
    }

    /// Binds a plan to a source in which the boxes that go stand already as they go: one behind the other in the order of
    /// the plan, whatever offsets it says, each dense. So nobody has to pack them.
    ///
    /// # Errors
    /// If the source is not one dense run of as many elements as go, or a box that comes lies outside the destination.
    pub fn packed<T: Scalar>(
        plan: &'a ExchangePlan,
        source: View<'a, T, D>,
        destination: ViewMut<'a, T, D>,
    ) -> Result<Self> {
        let (found, expected) = (source.shape(), [1, 1, 1, plan.elements_sent()]);
        if found != expected || (found[3] > 1 && source.strides()[3] != 1) {
            let strides = source.strides();
            return Err(Error::Plan(format!(
                "a packed source has shape {found:?} and strides {strides:?}, where the plan sends {expected:?}, dense"
            )));
        }
        Self::bind(plan, source, destination, true)
    }

    /// The boxes that go are known to lie inside the source.
    fn bind<T: Scalar>(
        plan: &'a ExchangePlan,
        source: View<'a, T, D>,
        destination: ViewMut<'a, T, D>,
        packed: bool,
    ) -> Result<Self> {
        check_boxes(&plan.receives, destination.shape(), "received")?;
        let item = size_of::<T>();
        Ok(Self {
            plan,
            source: Strided { base: source.base().as_ptr().cast(), strides: source.strides(), item },
            packed,
            destination: Strided {
                base: destination.base().as_ptr().cast(),
                strides: destination.strides(),
                item,
            },
            tensors: PhantomData,
        })
    }

    /// The plan.
    pub const fn plan(&self) -> &'a ExchangePlan {
        self.plan
    }

    /// Bytes that rank `me`, whose transfer this is, sends to others.
    pub fn bytes_sent_by(&self, me: usize) -> u64 {
        let sections = self.plan.sends.iter().filter(|section| section.peer != me);
        sections.fold(0, |bytes: u64, section| {
            let extent = section.region.extent;
            let item = self.source.item as u64;
            let more = extent.iter().fold(item, |product, &axis| product.saturating_mul(axis as u64));
            // Nothing, times more than can be counted, is nothing.
            bytes.saturating_add(if extent.contains(&0) { 0 } else { more })
        })
    }

    /// That every box goes to or comes from a rank of the group.
    ///
    /// # Errors
    /// If one does not.
    pub fn check_peers(&self, size: usize) -> Result<()> {
        let sections = self.plan.sends.iter().chain(&self.plan.receives);
        match sections.map(|section| section.peer).find(|peer| *peer >= size) {
            None => Ok(()),
            Some(peer) => Err(Error::Plan(format!("there is no rank {peer} in a group of {size}"))),
        }
    }

    /// The boxes of the source that go to a rank, in order: what a communicator of your own reads.
    pub fn outgoing(&self, peer: usize) -> impl Iterator<Item = StridedBox> {
        let Strided { base, strides, item } = self.source;
        let is_packed = self.packed;
        packed(&self.plan.sends).filter(move |(_, section)| section.peer == peer).map(move |(at, section)| {
            let extent = section.region.extent;
            let (start, strides) = match is_packed {
                true => (if extent.contains(&0) { 0 } else { at }, contiguous_strides(extent)),
                false => (section.region.start(strides), strides),
            };
            StridedBox { base: base.wrapping_add(start * item), item, extent, strides }
        })
    }

    /// The boxes of the destination that come from a rank, in order: what a communicator of your own writes.
    pub fn incoming(&self, peer: usize) -> impl Iterator<Item = StridedBox> {
        self.destination.boxes(&self.plan.receives, peer)
    }

    /// Adds to `copies` what rank `me`, whose transfer this is, must copy out of the same transfer of rank `peer`. `members`
    /// are the ranks' numbers in the world, for the error.
    ///
    /// Soundness rests on both constructors: every box of a plan lies inside its tensor, so the copies read elements
    /// of the peer's source and write elements of this destination. Whoever makes the copies must see to it that
    /// both tensors are still lent.
    ///
    /// # Errors
    /// If the boxes of the two plans do not pair off.
    pub(crate) fn copies_from(
        &self,
        me: usize,
        theirs: &Self,
        peer: usize,
        members: &[usize],
        copies: &mut Vec<StridedCopy>,
    ) -> Result<()> {
        let (mut sent, mut received) = (theirs.outgoing(me), self.incoming(peer));
        loop {
            match (sent.next(), received.next()) {
                (None, None) => return Ok(()),
                (Some(from), Some(to)) if from.extent == to.extent && from.item == to.item => {
                    copies.push(from.copy_to(&to))
                }
                (from, to) => {
                    let extent = |part: Option<StridedBox>| part.map(|part| part.extent);
                    return Err(unpaired(members[peer], members[me], extent(from), extent(to)));
                }
            }
        }
    }
}

/// The error for a box that rank `from` of the world sends to rank `to` and one that `to` expects, of which the extents differ
/// or one is missing.
pub(super) fn unpaired(
    from: usize,
    to: usize,
    sent: Option<[usize; 4]>,
    expected: Option<[usize; 4]>,
) -> Error {
    Error::Plan(format!("rank {from} sends {sent:?} to rank {to}, which expects {expected:?}"))
}

/// That a rotation's signature and lengths fit its block and group.
///
/// # Errors
/// If one does not.
pub(super) fn check_rotation<T: Element>(
    signature: &Signature,
    lengths: &[usize],
    size: usize,
) -> Result<()> {
    if signature.dtype != T::DTYPE {
        return Err(Error::Plan(format!("a signature of {} for a block of {}", signature.dtype, T::DTYPE)));
    }
    if lengths.len() != size {
        return Err(Error::Plan(format!("{} lengths of blocks for {size} ranks", lengths.len())));
    }
    Ok(())
}

/// The error for the block of a rank of the world which is of another length than the call says.
pub(super) fn unlike(rank: usize, length: usize, said: usize) -> Error {
    Error::Plan(format!("rank {rank}'s block is {length} long, where the call says {said}"))
}

/// A box of a tensor in memory. The address is good while the transfer that gave it is borrowed: for reading if the box
/// goes, for writing if it comes.
#[derive(Clone, Copy, Debug)]
pub struct StridedBox {
    /// Its first element.
    pub base: *mut u8,
    /// Bytes of one element.
    pub item: usize,
    /// How many elements along each axis.
    pub extent: [usize; 4],
    /// Distances between neighbours of each axis, in elements.
    pub strides: [usize; 4],
}

impl StridedBox {
    /// Bytes of its elements; [`usize::MAX`] if they cannot be counted.
    pub(crate) fn bytes(&self) -> usize {
        self.extent.iter().fold(self.item, |bytes, &axis| bytes.saturating_mul(axis))
    }

    /// The copy of this box to another one of the same extent and element size.
    pub const fn copy_to(&self, to: &Self) -> StridedCopy {
        StridedCopy {
            source: self.base.cast_const(),
            destination: to.base,
            item: self.item,
            extent: self.extent,
            source_strides: self.strides,
            destination_strides: to.strides,
        }
    }
}

/// That boxes lie inside a tensor.
fn check_boxes(sections: &[Section], shape: [usize; 4], what: &str) -> Result<()> {
    match sections.iter().find(|section| !section.region.fits(shape)) {
        None => Ok(()),
        Some(Section { peer, region }) => {
            Err(Error::Plan(format!("the {what} box {region:?} of peer {peer} lies outside shape {shape:?}")))
        }
    }
}

impl Strided {
    /// The boxes of a plan that concern a rank.
    fn boxes(self, sections: &[Section], peer: usize) -> impl Iterator<Item = StridedBox> {
        sections.iter().filter(move |section| section.peer == peer).map(move |Section { region, .. }| {
            let base = self.base.wrapping_add(region.start(self.strides) * self.item);
            StridedBox { base, item: self.item, extent: region.extent, strides: self.strides }
        })
    }
}

impl<D> core::fmt::Debug for Transfer<'_, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Transfer").field("plan", self.plan).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Cpu;

    #[test]
    fn a_box_outside_its_tensor_is_refused() {
        let (from, mut to) = ([0.0_f32; 8], [0.0_f32; 8]);
        let mut plan = ExchangePlan::default();
        plan.send(0, [0, 1, 0, 0], [1, 2, 2, 2]);
        let source = View::new(&from, [1, 2, 2, 2]).unwrap();
        let error =
            Transfer::<Cpu>::new(&plan, source, ViewMut::new(&mut to, [1, 2, 2, 2]).unwrap()).unwrap_err();
        assert!(error.to_string().contains("the sent box"), "{error}");
        let mut plan = ExchangePlan::default();
        plan.receive(0, [0, 0, 0, 0], [1, 2, 2, 3]);
        assert!(Transfer::<Cpu>::new(&plan, source, ViewMut::new(&mut to, [1, 2, 2, 2]).unwrap()).is_err());
        plan.receives[0].region = Region { offset: [usize::MAX, 0, 0, 0], extent: [2, 1, 1, 1] };
        assert!(Transfer::<Cpu>::new(&plan, source, ViewMut::new(&mut to, [1, 2, 2, 2]).unwrap()).is_err());
    }

    #[test]
    fn a_packed_source_has_its_boxes_one_behind_the_other() {
        let numbers: Vec<f32> = (0..22).map(|i| i as f32).collect();
        let mut to = [0.0_f32; 4];
        let mut plan = ExchangePlan::default();
        // Where they would be in a tensor that nobody packed is no matter.
        plan.send(1, [7, 0, 9, 0], [1, 2, 3, 2]);
        plan.send(2, [0, 5, 0, 0], [1, 0, 3, 2]);
        plan.send(1, [0, 0, 40, 0], [1, 2, 1, 2]);
        plan.send(0, [0, 0, 0, 0], [2, 1, 3, 1]);
        assert_eq!(plan.elements_sent(), 22);
        let source = View::new(&numbers, [1, 1, 1, 22]).unwrap();
        let to = ViewMut::new(&mut to, [1, 1, 1, 4]).unwrap();
        let transfer = Transfer::<Cpu>::packed(&plan, source, to).unwrap();
        let first = |part: StridedBox| part.base.addr().wrapping_sub(source.base().as_ptr().addr()) / 4;
        let boxes =
            |peer| transfer.outgoing(peer).map(|part| (first(part), part.strides)).collect::<Vec<_>>();
        assert_eq!(boxes(1), [(0, [12, 6, 2, 1]), (12, [4, 2, 2, 1])]);
        assert_eq!(boxes(0), [(16, [3, 3, 1, 1])]);
        assert_eq!(boxes(2).len(), 1);
        assert_eq!(transfer.bytes_sent_by(0), 4 * 16);
        let mut more = [0.0_f32; 4];
        for (shape, strides) in
            [([1, 1, 1, 21], [1; 4]), ([1, 1, 11, 2], [1, 1, 2, 1]), ([1, 1, 1, 22], [0; 4])]
        {
            let source = View::with_strides(&numbers, shape, strides).unwrap();
            let to = ViewMut::new(&mut more, [1, 1, 1, 4]).unwrap();
            let error = Transfer::<Cpu>::packed(&plan, source, to).unwrap_err().to_string();
            assert!(error.contains("a packed source") && error.contains("[1, 1, 1, 22]"), "{error}");
        }
    }
}
