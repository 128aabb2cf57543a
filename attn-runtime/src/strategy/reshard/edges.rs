//! What is done to queries and keys on their way, in the pass that lays them out: for the exchange, with each peer's heads in
//! a box of its own, so that nobody has to pack them, and this rank's where they are attended; or, where nothing is exchanged,
//! in the tensor that the kernel or the ring reads.

use crate::comm::{ExchangePlan, Region, Section, packed};
use crate::device::{Device, EdgeCopy, Scope};
use crate::edges::Edge;
use crate::error::Result;
use crate::tensor::{Element, View, ViewMut, contiguous_strides};

/// An exchange of heads whose source is packed: what goes to others, and what stays.
#[derive(Debug, Default)]
pub(super) struct Packed {
    pub(super) exchange: ExchangePlan,
    /// What goes from this rank to itself: where it is, and where it belongs.
    own: Vec<[Region; 2]>,
}

impl Packed {
    /// The same exchange as rank `me`'s plan.
    pub(super) fn of(plan: &ExchangePlan, me: usize) -> Self {
        let mut exchange = plan.clone();
        exchange.sends.retain(|section| section.peer != me);
        exchange.receives.retain(|section| section.peer != me);
        let own = |sections: &[Section]| {
            let own = sections.iter().filter(|section| section.peer == me);
            own.map(|section| section.region).collect::<Vec<_>>()
        };
        let own =
            own(&plan.sends).into_iter().zip(own(&plan.receives)).map(|(from, to)| [from, to]).collect();
        Self { exchange, own }
    }
}

/// The copies of a call. Kept from call to call for its memory.
#[derive(Debug, Default)]
pub(super) struct Batch(Vec<EdgeCopy>);

// SAFETY: the addresses are only used within the call that put them there.
unsafe impl Send for Batch {}
// SAFETY: as above; through a shared batch nothing is copied.
unsafe impl Sync for Batch {}

impl Batch {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Brings a tensor to where it belongs: with its edge when the batch is [run](Self::run), or at once if it has none.
    pub(super) fn bring<T: Element, D: Device>(
        &mut self,
        scope: Scope<'_, D>,
        edge: &Edge<'_, T, D>,
        source: View<'_, T, D>,
        destination: ViewMut<'_, T, D>,
    ) -> Result<()> {
        if edge.is_none() {
            return scope.copy(source, destination);
        }
        self.0.push(edge.copy(&source, &destination));
        Ok(())
    }

    /// Takes memory for the boxes of an exchange, and brings each to its place there, this rank's own to where it belongs.
    pub(super) fn pack<'a, T: Element, D: Device>(
        &mut self,
        scope: Scope<'a, D>,
        Packed { exchange, own }: &Packed,
        edge: &Edge<'_, T, D>,
        source: View<'_, T, D>,
        inside: &mut ViewMut<'_, T, D>,
    ) -> Result<View<'a, T, D>> {
        let mut boxes = scope.take([1, 1, 1, exchange.elements_sent()])?;
        let all = |region: &Region| region.offset[2]..region.offset[2] + region.extent[2];
        for (at, section) in packed(&exchange.sends) {
            let extent = section.region.extent;
            let part = boxes.reborrow().narrow(3, at, extent.iter().product())?;
            // SAFETY: the part is dense, and has as many elements as the box; both are of this call's scratch memory.
            let part = unsafe { ViewMut::from_raw_parts(part.base(), extent, contiguous_strides(extent)) };
            let heads = all(&section.region);
            let from = source.narrow(2, heads.start, heads.len())?;
            self.0.push(edge.heads(&heads)?.copy(&from, &part));
        }
        for [from, to] in own {
            let heads = all(from);
            let from = source.narrow(2, heads.start, heads.len())?;
            let to = inside.reborrow().narrow(1, to.offset[1], to.extent[1])?;
            self.0.push(edge.heads(&heads)?.copy(&from, &to));
        }
        Ok(boxes.into_view())
    }

    /// Makes all copies, in one batch.
    ///
    /// # Safety
    /// What [`bring`](Self::bring) and [`pack`](Self::pack) were given since [`clear`](Self::clear) is still lent; no
    /// destination overlaps another one or a source.
    pub(super) unsafe fn run<D: Device>(&self, scope: Scope<'_, D>) -> Result<()> {
        // SAFETY: the caller's contract; a session has checked that weights and tables are of the tensors' shapes.
        unsafe { scope.edge(&self.0) }
    }
}
