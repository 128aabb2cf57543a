//! An exchange: boxes from every rank to every rank.

use core::ptr::NonNull;
use std::sync::atomic::Ordering;

use attn_runtime::comm::Call;
use attn_runtime::device::StridedCopy;
use attn_runtime::{Communicator, Result, Scope, Signature, Transfer};

use super::flow::Flow;
use super::{Carrier, GpuComm, Work, moves};
use crate::cuda::launches::Launches;

/// Queues copies, if there are any.
///
/// # Safety
/// As [`Device::copy`](attn_runtime::Device::copy).
pub(super) unsafe fn copy<D: Launches>(queue: &D::Queue, copies: &[StridedCopy]) -> Result<()> {
    if copies.is_empty() {
        return Ok(());
    }
    // SAFETY: the caller's contract.
    unsafe { D::copy(queue, copies) }
}

impl<D: Launches> GpuComm<D> {
    /// [`Communicator::exchange`].
    pub(super) fn carry_out(
        &self,
        work: &mut Work<D>,
        scope: Scope<'_, D>,
        signature: &Signature,
        transfers: &[Transfer<'_, D>],
    ) -> Result<()> {
        let (queue, me, size) = (scope.queue(), self.rank(), self.size());
        transfers.iter().try_for_each(|transfer| transfer.check_peers(size))?;
        let Work { carrier, staging, known, steps, recorded } = work;
        if let Carrier::Alone = carrier {
            steps.by_messages(transfers, me, &self.end.roll.members, NonNull::dangling())?;
            // SAFETY: the boxes lie inside the transfers' own tensors, which are lent for this call, the destination
            // exclusively.
            return unsafe { copy::<D>(queue, &steps.own) };
        }
        let recording = D::is_recording(queue)?;
        let call = Call::Exchange(*signature, transfers.len());
        let can = matches!(carrier, Carrier::Nccl(nccl) if nccl.library().has_all_to_all());
        let moved = moves::moves_digest(transfers, size);
        let agreed = self.agree(known, &call, recording, moved, || moves::moves(transfers, size, can))?;
        let sent: u64 = transfers.iter().map(|transfer| transfer.bytes_sent_by(me)).sum();
        self.end.sent.fetch_add(sent, Ordering::Relaxed);
        let mut flow = Flow::begin(self, queue, call, recording, agreed.fresh);
        let nccl = match carrier {
            Carrier::Nccl(nccl) => nccl,
            Carrier::Direct(direct) => return flow.alongside(|| direct.exchange(scope, transfers)),
            Carrier::Alone => return Ok(()),
        };
        let even = moves::moves_even(transfers, size).filter(|_| agreed.even);
        let needed = match even {
            Some(bytes) => moves::all_to_all_staging(transfers, size, bytes)?,
            None => moves::staging_bytes(transfers, me, size)?,
        };
        let staging = staging.take(nccl, queue, needed, recording)?;
        let sides = match even {
            Some(bytes) => Some((steps.by_all_to_all(transfers, size, bytes, staging), bytes)),
            None => {
                steps.by_messages(transfers, me, &self.end.roll.members, staging)?;
                None
            }
        };
        flow.arrive();
        let posted = (|| {
            // SAFETY: the sources lie inside the transfers' tensors, the destinations in staging memory, which the work
            // before this call is done with as far as the queue goes.
            unsafe { copy::<D>(queue, &steps.packs) }?;
            if sides.is_some() || !steps.messages.is_empty() {
                flow.post(recorded, nccl, |nccl, stream, until, failed| match sides {
                    // SAFETY: both sides are so long, in memory of the tensors, which are lent for this call, or of
                    // staging. The stream is behind all that writes what is sent, and the queue follows it.
                    Some(((from, to), bytes)) => unsafe {
                        nccl.all_to_all(from, to, bytes, stream, until, failed)
                    },
                    // SAFETY: as above.
                    None => unsafe { nccl.group(&steps.messages, stream, until, failed) },
                })?;
            }
            // SAFETY: as without peers. What stays here is copied while the rest is under way.
            unsafe { copy::<D>(queue, &steps.own) }
        })();
        // The others are told before this rank waits for what they may never do.
        self.tell(posted)?;
        flow.join()?;
        // SAFETY: the sources lie in staging memory, the destinations inside the transfers' tensors, lent exclusively.
        unsafe { copy::<D>(queue, &steps.unpacks) }
    }
}
