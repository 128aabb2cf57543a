//! A ring: blocks of keys and values go round, the next one on its way while this one is computed on.

use core::hash::Hash;
use core::marker::PhantomData;
use core::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use attn_runtime::comm::{Call, StridedBox};
use attn_runtime::device::StridedCopy;
use attn_runtime::tensor::contiguous_strides;
use attn_runtime::{Communicator, Element, Error, KeyValue, Result, Scope, Signature, View};

use super::exchange::copy;
use super::flow::Flow;
use super::known::{Moves, digest};
use super::moves::{is_run, sum};
use super::watchdog::Marks;
use super::{Carrier, GpuComm, Work};
use crate::cuda::launches::Launches;
use crate::cuda::nccl::{Message, at};

/// The blocks that go round: where they lie in staging memory, which holds two of them. What is received at a hop goes
/// where the block of the hop before last stood.
struct Ring<'l, T> {
    /// How long each rank's block is.
    lengths: &'l [usize],
    /// Shapes of this rank's key and value.
    shapes: [[usize; 4]; 2],
    /// Bytes of the places of a key and of a value.
    places: [usize; 2],
    elements: PhantomData<T>,
}

/// Where a key and a value begin.
type Place = [*mut u8; 2];

impl<'l, T: Element> Ring<'l, T> {
    /// # Errors
    /// If the numbers do not fit each other.
    fn of<D: Launches>(
        signature: &Signature,
        lengths: &'l [usize],
        block: &KeyValue<'_, T, D>,
        me: usize,
        members: &[usize],
    ) -> Result<Self> {
        let size = members.len();
        if signature.dtype != T::DTYPE {
            return Err(Error::Plan(format!(
                "a signature of {} for a block of {}",
                signature.dtype,
                T::DTYPE
            )));
        }
        if lengths.len() != size {
            return Err(Error::Plan(format!("{} lengths of blocks for {size} ranks", lengths.len())));
        }
        let shapes = [block.key.shape(), block.value.shape()];
        if let Some(shape) = shapes.iter().find(|shape| shape[1] != lengths[me]) {
            let (rank, length, said) = (members[me], shape[1], lengths[me]);
            return Err(Error::Plan(format!(
                "rank {rank}'s block is {length} long, where the call says {said}"
            )));
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut ring = Self { lengths, shapes, places: [0; 2], elements: PhantomData };
        for ([batch, _, heads, dim], place) in shapes.into_iter().zip(&mut ring.places) {
            *place = [batch, longest, heads, dim]
                .iter()
                .try_fold(size_of::<T>(), |bytes, axis| bytes.checked_mul(*axis))
                .ok_or(Error::TooLarge { shape: [batch, longest, heads, dim], dtype: T::DTYPE })
                .and_then(|bytes| sum(core::iter::once(bytes)))?;
        }
        Ok(ring)
    }

    /// What ranks compare: all lengths, and the other axes.
    fn numbers(&self) -> impl Iterator<Item = u64> {
        let axes = self.shapes.iter().flat_map(|[batch, _, heads, dim]| [*batch, *heads, *dim]);
        axes.chain(self.lengths.iter().copied()).map(|number| number as u64)
    }

    /// Bytes of two blocks.
    fn staging_bytes(&self) -> Result<usize> {
        sum(self.places.into_iter().chain(self.places))
    }

    /// The shape of a part of a rank's block.
    fn shape(&self, part: usize, owner: usize) -> [usize; 4] {
        let [batch, _, heads, dim] = self.shapes[part];
        [batch, self.lengths[owner], heads, dim]
    }

    /// Bytes of a part of a rank's block. (The longest one's can be counted.)
    fn bytes(&self, part: usize, owner: usize) -> usize {
        self.shape(part, owner).iter().product::<usize>() * size_of::<T>()
    }

    /// Where the block of a hop lies in staging memory.
    fn place(&self, staging: NonNull<u8>, hop: usize) -> Place {
        let [key, value] = self.places;
        let start = hop % 2 * (key + value);
        [at(staging, start), at(staging, start + key)]
    }

    /// Where this rank's own block is sent from, and the copies that bring it there: in place what is one run of memory.
    fn own<D: Launches>(
        &self,
        block: &KeyValue<'_, T, D>,
        staging: NonNull<u8>,
        packs: &mut Vec<StridedCopy>,
    ) -> Place {
        packs.clear();
        let mut place = self.place(staging, 0);
        for (view, place) in [block.key, block.value].into_iter().zip(&mut place) {
            let base = view.base().as_ptr().cast();
            if is_run(view.shape(), view.strides()) {
                *place = base;
                continue;
            }
            let (extent, strides) = (view.shape(), view.strides());
            let from = StridedBox { base, item: size_of::<T>(), extent, strides };
            packs.push(from.copy_to(&StridedBox {
                base: *place,
                strides: contiguous_strides(extent),
                ..from
            }));
        }
        place
    }

    /// The messages of a hop: `owner`'s block on to the next rank, and the one before it from the rank before.
    fn messages(&self, owner: usize, here: Place, there: Place, me: usize) -> [Option<Message>; 4] {
        let size = self.lengths.len();
        let before = |rank: usize| (rank + size - 1) % size;
        let (to, from, coming) = ((me + 1) % size, before(me), before(owner));
        let send = |part: usize| {
            let bytes = self.bytes(part, owner);
            (bytes > 0).then_some(Message::Send { to, data: here[part], bytes })
        };
        let receive = |part: usize| {
            let bytes = self.bytes(part, coming);
            (bytes > 0).then_some(Message::Receive { from, data: there[part], bytes })
        };
        [send(0), send(1), receive(0), receive(1)]
    }

    /// A block in staging memory.
    ///
    /// # Safety
    /// The place must hold `owner`'s block, for as long as the queue has not passed what is queued with the view.
    unsafe fn block<'b, D: Launches>(&self, place: Place, owner: usize) -> KeyValue<'b, T, D> {
        let view = |part: usize| {
            let shape = self.shape(part, owner);
            let base = NonNull::new(place[part].cast::<T>()).unwrap_or(NonNull::dangling());
            // SAFETY: the caller's contract; the place is aligned to more than elements are, and holds as many as the shape.
            unsafe { View::from_raw_parts(base, shape, contiguous_strides(shape)) }
        };
        KeyValue { key: view(0), value: view(1) }
    }
}

impl<D: Launches> GpuComm<D> {
    /// Counts a block that goes on to the next rank.
    fn count<T: Element>(&self, ring: &Ring<'_, T>, owner: usize) {
        let sent = ring.bytes(0, owner) + ring.bytes(1, owner);
        self.end.sent.fetch_add(sent as u64, Ordering::Relaxed);
    }

    /// [`Communicator::rotate`].
    pub(super) fn go_round<T: Element>(
        &self,
        work: &mut Work<D>,
        scope: Scope<'_, D>,
        signature: &Signature,
        lengths: &[usize],
        block: KeyValue<'_, T, D>,
        mut visit: impl FnMut(usize, KeyValue<'_, T, D>) -> Result<()>,
    ) -> Result<()> {
        let (queue, me, size) = (scope.queue(), self.rank(), self.size());
        let ring = Ring::of(signature, lengths, &block, me, &self.end.roll.members)?;
        let Work { carrier, staging, known, steps, recorded } = work;
        if let Carrier::Alone = carrier {
            return visit(0, block);
        }
        let recording = D::is_recording(queue)?;
        let call = Call::Rotate(*signature);
        let moved = digest(|hasher| ring.numbers().for_each(|number| number.hash(hasher)));
        let moves = || Moves { shape: ring.numbers().collect(), ..Moves::default() };
        let agreed = self.agree(known, &call, recording, moved, moves)?;
        let mut flow = Flow::begin(self, queue, call, recording, agreed.fresh);
        let nccl = match carrier {
            Carrier::Nccl(nccl) => nccl,
            Carrier::Direct(direct) => {
                return flow.alongside(|| {
                    direct.rotate(scope, lengths, block, |owner, block| {
                        if (owner + 1) % size != me {
                            self.count(&ring, owner);
                        }
                        self.check()?;
                        visit(owner, block)
                    })
                });
            }
            Carrier::Alone => return Ok(()),
        };
        let staging = staging.take(nccl, queue, ring.staging_bytes()?, recording)?;
        let turned = (|| {
            let mut here = ring.own(&block, staging, &mut steps.packs);
            // SAFETY: the sources lie in the lent block, the destinations in staging memory, which the work before this
            // call is done with as far as the queue goes.
            unsafe { copy::<D>(queue, &steps.packs) }?;
            // Where the block of the next hop is there.
            let mut arriving: Option<Arc<Marks<D>>> = None;
            for hop in 0..size {
                let owner = (me + size - hop) % size;
                let arrived = arriving.take();
                let shown = here;
                if hop + 1 < size {
                    // It goes where the block before this one stood: what reads that is queued by now.
                    let there = ring.place(staging, hop + 1);
                    flow.arrive();
                    steps.messages.clear();
                    steps.messages.extend(ring.messages(owner, here, there, me).into_iter().flatten());
                    if !steps.messages.is_empty() {
                        arriving = Some(flow.post(recorded, nccl, |nccl, stream, until, failed| {
                            // SAFETY: what is sent is the lent block, its copy, or what was received before on the same
                            // stream; what is received goes where nothing is read any more when the queue has come to
                            // this place, and the queue follows the stream before it reads it.
                            unsafe { nccl.group(&steps.messages, stream, until, failed) }
                        })?);
                    }
                    self.count(&ring, owner);
                    here = there;
                }
                if let Some(marks) = arrived {
                    D::follow(queue, &marks.done)?;
                }
                // Kernels for blocks that will not come are not worth their time.
                self.check()?;
                match hop {
                    0 => visit(owner, block)?,
                    // SAFETY: the queue has followed what brought the block here; what overwrites it is posted after the
                    // next call of `visit` at the earliest, behind what this one queues.
                    _ => visit(owner, unsafe { ring.block(shown, owner) })?,
                }
            }
            Ok(())
        })();
        self.tell(turned)?;
        flow.join()
    }
}
