//! The two streams of a rank, and the order between them.

use core::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use attn_runtime::comm::Call;
use attn_runtime::{Error, Result};

use super::watchdog::{Marks, comes, next};
use super::{GpuComm, Recorded};
use crate::cuda::launches::Launches;
use crate::cuda::nccl::Comm;

/// One collective's work on the second stream. On the way out, however that comes, the first stream waits for it, so that
/// what is freed or written after it is so in order.
pub(super) struct Flow<'c, D: Launches> {
    comm: &'c GpuComm<D>,
    queue: &'c D::Queue,
    call: Call,
    sequence: u64,
    recording: bool,
    fresh: bool,
    /// The last step that the rank has come to.
    step: u64,
    last: Option<Arc<Marks<D>>>,
}

impl<'c, D: Launches> Flow<'c, D> {
    pub(super) fn begin(
        comm: &'c GpuComm<D>,
        queue: &'c D::Queue,
        call: Call,
        recording: bool,
        fresh: bool,
    ) -> Self {
        // Replaying counts nowhere, so recording does not either.
        let roll = &comm.end.roll;
        let sequence = if recording { roll.sequence.load(Ordering::Relaxed) } else { next(roll) };
        Self { comm, queue, call, sequence, recording, fresh, step: 0, last: None }
    }

    /// Tells the others that this rank has come to the next step, whether it has anything to move there or not.
    pub(super) fn arrive(&mut self) {
        self.step += 1;
        if !self.recording {
            self.comm.end.roll.host().arrive(comes(self.sequence, self.step));
        }
    }

    /// Queues work of the present step on the second stream, behind all that is queued on the first by now.
    pub(super) fn post(
        &mut self,
        recorded: &mut Recorded<D>,
        nccl: &mut Comm,
        body: impl FnOnce(&mut Comm, *mut c_void, Instant, &dyn Fn() -> Option<Error>) -> Result<()>,
    ) -> Result<Arc<Marks<D>>> {
        let rank = &*self.comm.end.rank;
        let marks = if self.recording {
            rank.watch.expect_replays();
            // By turns: the queue still has to follow those of the hop before when the next hop is posted.
            match &mut recorded[self.step as usize % 2] {
                Some(marks) => Arc::clone(marks),
                none => Arc::clone(none.insert(rank.watch.marks()?)),
            }
        } else {
            rank.watch.marks()?
        };
        let place = [self.sequence, self.step];
        marks.posted.store(false, Ordering::Release);
        D::set(self.queue, &marks.ready)?;
        D::follow(&rank.lane, &marks.ready)?;
        let until = Instant::now() + rank.watch.deadline;
        let failed = || match Instant::now() >= until {
            true => Some(rank.watch.late(&self.comm.end.roll, &self.call, place)),
            false => rank.watch.failure(),
        };
        {
            let _turn = rank.turn();
            D::with_stream(&rank.lane, |_, stream| body(nccl, stream, until, &failed))??;
        }
        D::set(&rank.lane, &marks.done)?;
        marks.posted.store(true, Ordering::Release);
        if !self.recording {
            rank.watch.watch(&self.comm.end.roll, self.call, place, self.fresh, true, &marks);
        }
        self.last = Some(Arc::clone(&marks));
        Ok(marks)
    }

    /// Queues work that waits for other ranks on the first stream itself, by kernels that see to their own deadline.
    pub(super) fn alongside(&mut self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        self.arrive();
        if self.recording {
            return body();
        }
        let watch = &self.comm.end.rank.watch;
        let marks = watch.marks()?;
        marks.posted.store(false, Ordering::Release);
        D::set(self.queue, &marks.ready)?;
        // Before it is queued: the simulated GPU runs at once, and waits meanwhile.
        watch.watch(&self.comm.end.roll, self.call, [self.sequence, self.step], self.fresh, false, &marks);
        body()?;
        D::set(self.queue, &marks.done)?;
        marks.posted.store(true, Ordering::Release);
        Ok(())
    }

    /// Lets the first stream wait for what was posted last.
    pub(super) fn join(&mut self) -> Result<()> {
        self.last.take().map_or(Ok(()), |marks| D::follow(self.queue, &marks.done))
    }
}

impl<D: Launches> Drop for Flow<'_, D> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let rank = self.comm.end.rank.number;
            let message = format!("inside {}", self.call);
            self.comm.end.rank.watch.fail(&Error::RankPanicked { rank, message });
        }
        // An error has no place to go from here; the paths that can report one have joined before.
        let _ = self.join();
    }
}
