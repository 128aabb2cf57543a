//! Memory of a GPU.

use core::ptr::NonNull;

use attn_runtime::{Device, Error, Result};
use cudarc::driver::{DriverError, result, sys};

use super::tenants::{self, Held};
use super::{Cuda, CudaQueue, graph};

/// A block of a GPU's memory, zeroed when allocated. Its address is one of the GPU's: the host must not read there.
#[derive(Debug)]
pub struct CudaMemory {
    base: NonNull<u8>,
    bytes: usize,
    /// Absent for a block of no bytes, which is none.
    queue: Option<CudaQueue>,
}

// SAFETY: the block is owned, and an address that the host does not read is the same on every thread.
unsafe impl Send for CudaMemory {}
// SAFETY: as above.
unsafe impl Sync for CudaMemory {}

/// Lends its alignment to the address of an empty block.
#[repr(align(64))]
struct Aligned;

impl CudaMemory {
    /// Allocates, and queues the zeros.
    pub(super) fn zeroed(queue: &CudaQueue, bytes: usize) -> Result<Self> {
        if bytes == 0 {
            return Ok(Self { base: NonNull::<Aligned>::dangling().cast(), bytes, queue: None });
        }
        let _current = queue.enter()?;
        queue.thread_must_not_capture(
            "allocating GPU memory",
            "make the call twice before the capture, with the same shapes, so that its scratch memory is there; and \
             give it tensors to write (`attend_into`)",
        )?;
        tenants::sweep(queue);
        let address = match tenants::take(queue, bytes) {
            Some(address) => address as sys::CUdeviceptr,
            // SAFETY: a context is current, by the guard above.
            None => unsafe { result::malloc_sync(bytes) }.map_err(|error| match error {
                DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                    Error::OutOfMemory { device: Cuda::NAME, bytes }
                }
                error => queue.failed("cuMemAlloc", error),
            })?,
        };
        let Some(base) = NonNull::new(core::ptr::without_provenance_mut::<u8>(address as usize)) else {
            return Err(Error::OutOfMemory { device: Cuda::NAME, bytes });
        };
        let memory = Self { base, bytes, queue: Some(queue.clone()) };
        // SAFETY: the block has just been allocated with this many bytes, and the stream lives.
        let zeroed = unsafe { result::memset_d8_async(address, 0, bytes, queue.stream().cu_stream()) };
        zeroed.map_err(|error| queue.failed("cuMemsetD8Async", error))?;
        Ok(memory)
    }

    /// The address of the first byte.
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let Some(queue) = &self.queue else { return };
        let Ok(_current) = queue.enter() else { return };
        // What cannot be freed now leaks, until the process ends.
        let held = Held::Device { address: self.base.as_ptr().addr(), bytes: self.bytes };
        // SAFETY: `zeroed` allocated the block, in this context, and nobody can name it any more. (Another GPU's queue is
        // given it by collectives alone, which wait for their copies.)
        unsafe { graph::when_settled(queue, held) };
    }
}
