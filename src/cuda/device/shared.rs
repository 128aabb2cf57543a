//! Memory of the host that a GPU's kernels reach while they run.

use core::ptr::NonNull;

use attn_runtime::{Error, Result};
use cudarc::driver::{result, sys};

use super::tenants::Held;
use super::{CudaQueue, graph};

/// A page-locked block of the host's memory, zeroed when allocated, at one address for host and GPUs.
#[derive(Debug)]
pub struct Shared {
    base: NonNull<u8>,
    queue: CudaQueue,
}

// SAFETY: the block is owned, and whoever reads or writes it through its address answers for how.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Allocates.
    pub(super) fn zeroed(queue: &CudaQueue, bytes: usize) -> Result<Self> {
        let _current = queue.enter()?;
        queue.thread_must_not_capture(
            "allocating memory that a GPU shares",
            "make the call before the capture",
        )?;
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: a context is current, by the guard above.
        let address = unsafe { result::malloc_host(bytes.max(1), flags) };
        let address = address.map_err(|error| queue.failed("cuMemHostAlloc", error))?;
        let Some(base) = NonNull::new(address.cast::<u8>()) else {
            return Err(Error::OutOfMemory { device: "page-locked host", bytes });
        };
        // SAFETY: the block has just been allocated with this many bytes of the host's memory.
        unsafe { base.as_ptr().write_bytes(0, bytes) };
        Ok(Self { base, queue: queue.clone() })
    }

    /// The address of the first byte.
    pub(super) const fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Ok(_current) = self.queue.enter() else { return };
        let held = Held::Host { address: self.base.as_ptr().expose_provenance() };
        // SAFETY: `zeroed` allocated the block, in this context, and nobody can name it any more.
        unsafe { graph::when_settled(&self.queue, held) };
    }
}
