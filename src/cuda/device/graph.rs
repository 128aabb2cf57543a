//! Calls recorded once and replayed: a CUDA graph.

use core::cell::Cell;
use std::sync::{PoisonError, RwLock};

use attn_runtime::{Error, Result};
use cudarc::driver::{CudaGraph as Graph, result, sys};

use super::tenants::Held;
use super::{CudaQueue, tenants};

/// How many queues of this process record. Locked for reading, none begins to.
static RECORDINGS: RwLock<usize> = RwLock::new(0);

thread_local! {
    /// How many queues record what this thread queues. To such a thread the driver refuses what another recording may
    /// not survive, and breaks its recording: to allocate and to free, on whatever stream.
    static RECORDED: Cell<usize> = const { Cell::new(0) };
}

/// Whether the calling thread records.
pub(super) fn this_thread_records() -> bool {
    // A thread that ends records no more.
    RECORDED.try_with(|recorded| recorded.get() > 0).unwrap_or(false)
}

/// Frees memory when no work uses memory of the queue's GPU any more; the queue's context is the current one. It is
/// not freed while the thread or the queue's stream records: that would break the recording, and the graph may name
/// the memory. Nor is it in the wake of a fault, when the driver frees nothing; and where several ranks share the GPU,
/// it is kept for [later](tenants).
///
/// Memory of a queue may be in use on any queue of its GPU, so it is the whole context that is waited for. But a
/// recording of another thread would not survive that, and while there is one only the queue itself is waited for.
/// (cuMemFree may, and in practice does, wait for the rest.)
///
/// # Safety
/// The driver must have allocated the memory in the queue's context, and nobody may be able to name it any more.
pub(super) unsafe fn when_settled(queue: &CudaQueue, held: Held) {
    if this_thread_records() {
        return;
    }
    // Held to the end, so that no recording begins meanwhile.
    let recordings = RECORDINGS.read().unwrap_or_else(PoisonError::into_inner);
    // Also a stream that another library records.
    if !matches!(queue.is_capturing(), Ok(false)) {
        return;
    }
    if tenants::is_crowded(queue.ordinal()) {
        tenants::keep(queue, held, *recordings == 0);
        return;
    }
    let settled = match *recordings {
        0 => result::ctx::synchronize(),
        // SAFETY: the stream lives as long as the queue.
        _ => unsafe { result::stream::synchronize(queue.stream().cu_stream()) },
    };
    if settled.is_ok() {
        // SAFETY: what used it is over, as far as queues of this crate go; the rest is the caller's contract.
        unsafe { held.free() };
    }
}

/// Calls `free` when all work of the current context is over, unless something records or the context has failed.
pub(super) fn when_quiet(free: impl FnOnce()) {
    let recordings = RECORDINGS.read().unwrap_or_else(PoisonError::into_inner);
    if *recordings == 0 && result::ctx::synchronize().is_ok() {
        free();
    }
}

/// What a queue recorded, ready to be queued again as one.
pub struct CudaGraph {
    graph: Graph,
    queue: CudaQueue,
}

impl CudaQueue {
    /// Records what `body` queues, instead of doing it. Meanwhile the calling thread cannot allocate memory of a GPU on
    /// any queue, and what it drops of it is not freed until the process ends.
    ///
    /// The calls of a session of one rank can be recorded once their scratch memory is there: make them twice before,
    /// with the same shapes. So can those of several ranks whose communicator is a `GpuComm`: every rank records, after calls
    /// of the same shapes, and every rank replays. Collectives between threads cannot, since they wait for the device.
    ///
    /// # Errors
    /// If `body` returns one, allocates or waits ([`Error::Capturing`]), or the driver reports one.
    pub fn capture<R>(&self, body: impl FnOnce() -> Result<R>) -> Result<(CudaGraph, R)> {
        let recording = Recording::begin(self)?;
        let value = body();
        let graph = recording.end();
        // What went wrong in the body explains what is wrong with its recording.
        let value = value?;
        match graph? {
            Some(graph) => Ok((CudaGraph { graph, queue: self.clone() }, value)),
            None => Err(Error::Capturing {
                what: "a call that another queue was given",
                cure: "queue it on the queue that records",
            }),
        }
    }
}

/// Ends the recording on every way out of it.
struct Recording<'q>(&'q CudaQueue);

impl<'q> Recording<'q> {
    fn begin(queue: &'q CudaQueue) -> Result<Self> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let _current = queue.enter()?;
        let mut recordings = RECORDINGS.write().unwrap_or_else(PoisonError::into_inner);
        let begun = queue.stream().begin_capture(mode);
        begun.map_err(|error| queue.failed("cuStreamBeginCapture", error))?;
        *recordings += 1;
        RECORDED.set(RECORDED.get() + 1);
        Ok(Self(queue))
    }

    fn end(self) -> Result<Option<Graph>> {
        let queue = self.0;
        core::mem::forget(self);
        let current = queue.enter();
        let flags = sys::CUgraphInstantiate_flags(0);
        let graph = queue.stream().end_capture(flags);
        *RECORDINGS.write().unwrap_or_else(PoisonError::into_inner) -= 1;
        RECORDED.set(RECORDED.get() - 1);
        current?;
        graph.map_err(|error| queue.failed("cuStreamEndCapture", error))
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        // `body` panicked. The stream must not go on recording; what it has recorded is of no use.
        let _ = Recording(self.0).end();
    }
}

impl CudaGraph {
    /// Queues the recorded work, on the queue that recorded it.
    ///
    /// # Safety
    /// All memory that the recorded calls read and write must still be there, the session's scratch memory included (so
    /// the session must live, and not have been called with larger shapes since), and nobody else may use what they
    /// write meanwhile.
    ///
    /// # Errors
    /// If the driver reports one.
    pub unsafe fn launch(&self) -> Result<()> {
        let _current = self.queue.enter()?;
        self.graph.launch().map_err(|error| self.queue.failed("cuGraphLaunch", error))
    }
}

impl core::fmt::Debug for CudaGraph {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CudaGraph").field("queue", &self.queue).finish_non_exhaustive()
    }
}
