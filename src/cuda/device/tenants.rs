//! Ranks that share a GPU. A rank that waits for all of the GPU, as the driver does before it frees memory, waits for
//! kernels of the others, which may wait for what that rank has still to queue. So while there are several, nothing is
//! freed: blocks are kept, and given out again when every queue of the GPU has passed the place where it stood then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use attn_runtime::Result;
use cudarc::driver::{CudaContext, result, sys};

use super::queue::{CudaMark, WeakQueue};
use super::{CudaQueue, graph};

/// Memory that nobody names any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// A block of a GPU's.
    Device { address: usize, bytes: usize },
    /// A page-locked block of the host's.
    Host { address: usize },
}

impl Held {
    /// # Safety
    /// The driver must have allocated it in the current context, and nothing may use it any more.
    pub(super) unsafe fn free(self) {
        // What cannot be freed leaks, until the process ends.
        let _ = match self {
            // SAFETY: the caller's contract.
            Self::Device { address, .. } => unsafe { result::free_sync(address as sys::CUdeviceptr) },
            // SAFETY: the caller's contract.
            Self::Host { address } => unsafe {
                result::free_host(core::ptr::with_exposed_provenance_mut(address))
            },
        };
    }
}

/// A block that waits for a GPU of one rank, or for a new owner.
struct Kept {
    held: Held,
    context: Arc<CudaContext>,
    /// Where all queues stood when it was given back. None if that could not be told: then it is not given out again.
    marks: Option<Vec<CudaMark>>,
}

#[derive(Default)]
struct Gpu {
    ranks: usize,
    /// Whether a queue has gone whose work may go on.
    orphans: bool,
    queues: Vec<WeakQueue>,
    kept: Vec<Kept>,
}

static GPUS: Mutex<BTreeMap<usize, Gpu>> = Mutex::new(BTreeMap::new());

/// Nothing that is locked here may be the last handle of a queue: its end is told here too.
fn lock() -> MutexGuard<'static, BTreeMap<usize, Gpu>> {
    GPUS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn move_in(ordinal: usize) {
    lock().entry(ordinal).or_default().ranks += 1;
}

pub(super) fn move_out(ordinal: usize) {
    let mut gpus = lock();
    let gpu = gpus.entry(ordinal).or_default();
    gpu.ranks = gpu.ranks.saturating_sub(1);
}

/// Whether several ranks live on a GPU.
pub(super) fn is_crowded(ordinal: usize) -> bool {
    lock().get(&ordinal).is_some_and(|gpu| gpu.ranks > 1)
}

/// A new queue.
pub(super) fn begins(ordinal: usize, queue: WeakQueue) {
    let mut gpus = lock();
    let queues = &mut gpus.entry(ordinal).or_default().queues;
    queues.retain(WeakQueue::is_live);
    queues.push(queue);
}

/// A queue that nobody has any more, though the GPU may still be at its work.
pub(super) fn ends(ordinal: usize) {
    if let Some(gpu) = lock().get_mut(&ordinal) {
        gpu.orphans |= gpu.ranks > 1;
    }
}

/// Keeps a block for later. `quiet`: whether nothing records, so that marks may be set.
pub(super) fn keep(queue: &CudaQueue, held: Held, quiet: bool) {
    let ordinal = queue.ordinal();
    let queues: Option<Vec<CudaQueue>> = {
        let gpus = lock();
        let gpu = gpus.get(&ordinal).filter(|gpu| quiet && !gpu.orphans);
        gpu.map(|gpu| gpu.queues.iter().filter_map(WeakQueue::upgrade).collect())
    };
    let mark = |queue: &CudaQueue| -> Result<CudaMark> {
        queue.must_not_capture("a mark", "wait for the end of the capture")?;
        let mark = queue.mark()?;
        queue.set(&mark)?;
        Ok(mark)
    };
    let marks = queues.and_then(|queues| queues.iter().map(mark).collect::<Result<Vec<_>>>().ok());
    let context = Arc::clone(queue.context());
    lock().entry(ordinal).or_default().kept.push(Kept { held, context, marks });
}

/// A block of just so many bytes that was kept, which nothing uses any more.
pub(super) fn take(queue: &CudaQueue, bytes: usize) -> Option<usize> {
    let mut gpus = lock();
    let kept = &mut gpus.get_mut(&queue.ordinal())?.kept;
    let fits = |block: &Kept| {
        let free = |marks: &Vec<CudaMark>| marks.iter().all(|mark| matches!(mark.is_past(), Ok(true)));
        matches!(block.held, Held::Device { bytes: own, .. } if own == bytes)
            && Arc::ptr_eq(&block.context, queue.context())
            && block.marks.as_ref().is_some_and(free)
    };
    let found = kept.iter().position(fits)?;
    match kept.swap_remove(found).held {
        Held::Device { address, .. } => Some(address),
        Held::Host { .. } => None,
    }
}

/// Frees what was kept for a GPU that is one rank's again. Its context is the current one.
pub(super) fn sweep(queue: &CudaQueue) {
    let there = |gpu: &Gpu| gpu.ranks <= 1 && !gpu.kept.is_empty();
    if !lock().get(&queue.ordinal()).is_some_and(there) {
        return;
    }
    graph::when_quiet(|| {
        let (ours, others): (Vec<_>, Vec<_>) = match lock().get_mut(&queue.ordinal()) {
            Some(gpu) => {
                gpu.orphans = false;
                core::mem::take(&mut gpu.kept)
                    .into_iter()
                    .partition(|kept| Arc::ptr_eq(&kept.context, queue.context()))
            }
            None => return,
        };
        lock().entry(queue.ordinal()).or_default().kept.extend(others);
        for kept in ours {
            // SAFETY: the block is of this context, nobody can name it, and all work of the context is over.
            unsafe { kept.held.free() };
        }
    });
}
