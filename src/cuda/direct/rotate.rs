//! Blocks of keys and values on their way round a ring.

use attn_runtime::comm::StridedBox;
use attn_runtime::device::Scope;
use attn_runtime::{Element, Error, KeyValue, Result, View, ViewMut};
use std::sync::PoisonError;

use super::{Direct, Operation};
use crate::cuda::launches::Launches;

/// A place for one block.
struct Buffer<'a, T, D> {
    key: ViewMut<'a, T, D>,
    value: ViewMut<'a, T, D>,
}

impl<T: Element, D: Launches> Buffer<'_, T, D> {
    /// The block of this length that stands there.
    fn holds(&self, length: usize) -> Result<KeyValue<'_, T, D>> {
        KeyValue { key: self.key.as_view(), value: self.value.as_view() }.narrow(1, 0, length)
    }
}

impl<D: Launches> Direct<D> {
    /// Collective: queues what [`Communicator::rotate`](attn_runtime::Communicator::rotate) does. Every hop copies the
    /// block that a rank has to the next rank, where two places take turns, and is queued before the block is visited.
    ///
    /// # Errors
    /// If `visit` returns one (then this rank withdraws, and every rank's waits end), if a block is not as long as
    /// `lengths` says, if there is no memory for the places, or as [`exchange`](Self::exchange).
    pub fn rotate<T: Element>(
        &self,
        scope: Scope<'_, D>,
        lengths: &[usize],
        block: KeyValue<'_, T, D>,
        visit: impl FnMut(usize, KeyValue<'_, T, D>) -> Result<()>,
    ) -> Result<()> {
        self.go_round(scope, lengths, block, visit).inspect_err(|_| self.stay_away(scope.queue()))
    }

    fn go_round<T: Element>(
        &self,
        scope: Scope<'_, D>,
        lengths: &[usize],
        block: KeyValue<'_, T, D>,
        mut visit: impl FnMut(usize, KeyValue<'_, T, D>) -> Result<()>,
    ) -> Result<()> {
        let (me, size) = (self.rank(), self.size());
        if lengths.len() != size {
            return Err(Error::Plan(format!("{} lengths of blocks for {size} ranks", lengths.len())));
        }
        let length = block.key.shape()[1];
        if length != lengths[me] || block.value.shape()[1] != length {
            let (rank, said) = (self.members[me], lengths[me]);
            return Err(Error::Plan(format!(
                "rank {rank}'s block is {length} long, where the call says {said}"
            )));
        }
        let longest = lengths.iter().copied().max().unwrap_or_default();
        let place = |view: View<'_, T, D>| {
            let [batch, _, heads, head_dim] = view.shape();
            scope.take::<T>([batch, longest, heads, head_dim])
        };
        let buffer = || Ok::<_, Error>(Buffer { key: place(block.key)?, value: place(block.value)? });
        // As many as are in use at a time: where the visited block stands, and where the next one comes.
        let buffers = (1..size.min(3)).map(|_| buffer()).collect::<Result<Vec<_>>>()?;
        for hop in 0..size {
            let owner = (me + size - hop) % size;
            let standing = match hop {
                0 => block,
                _ => buffers[(hop - 1) % 2].holds(lengths[owner])?,
            };
            if hop + 1 < size {
                // What stood there was visited in an earlier hop, and so the queue is past it when this is announced.
                let coming = buffers[hop % 2].holds(lengths[(owner + size - 1) % size])?;
                self.hop(scope, standing, coming)?;
            }
            visit(owner, standing)?;
        }
        Ok(())
    }

    /// Sends a block to the next rank, and receives one from the rank before.
    fn hop<T: Element>(
        &self,
        scope: Scope<'_, D>,
        standing: KeyValue<'_, T, D>,
        coming: KeyValue<'_, T, D>,
    ) -> Result<()> {
        let (me, size) = (self.rank(), self.size());
        let (next, before) = ((me + 1) % size, (me + size - 1) % size);
        let mut boxes = self.boxes.lock().unwrap_or_else(PoisonError::into_inner);
        boxes.clear();
        let parts = |block: KeyValue<'_, T, D>| [block.key, block.value].map(whole).into_iter();
        boxes.send(next, parts(standing))?;
        boxes.receive(before, parts(coming))?;
        // SAFETY: the block that goes is lent, or stands in a buffer that nothing writes before it is visited; the one that
        // comes goes to a buffer that this scope lends to nobody else, and that the queue is past. Memory of a device stays
        // until its queues have passed what uses it.
        unsafe { self.post(scope.queue(), &boxes, 1 << next | 1 << before, Operation::Rotate) }
    }
}

/// A view as a box.
fn whole<T: Element, D: Launches>(view: View<'_, T, D>) -> StridedBox {
    StridedBox {
        base: view.base().as_ptr().cast(),
        item: size_of::<T>(),
        extent: view.shape(),
        strides: view.strides(),
    }
}
