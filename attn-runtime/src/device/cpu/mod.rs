//! The host processor: heap memory, and a team of threads as its queue.

mod copy;
mod edge;
mod memory;
mod queue;
pub(crate) mod simd;

pub use memory::CpuMemory;
pub(crate) use memory::Lender;
pub use queue::CpuQueue;

use core::ptr::NonNull;

use crate::device::{Device, EdgeCopy, StridedCopy};
use crate::error::Result;

/// The host processor.
#[derive(Clone, Copy, Debug)]
pub struct Cpu;

impl Cpu {
    /// As [`Device::copy`], for what is not found in the caches anyway when it is used next: so many bytes, or memory that
    /// another core reads.
    ///
    /// # Safety
    /// As [`Device::copy`].
    pub(crate) unsafe fn copy_past_caches(copies: &[StridedCopy]) {
        // SAFETY: the caller's contract is that of `past_caches`.
        unsafe { copy::past_caches(copies) };
    }

    /// Allocates zeroed memory; the processor needs no queue for it.
    pub(crate) fn allocate_bytes(bytes: usize) -> Result<CpuMemory> {
        CpuMemory::zeroed(bytes)
    }
}

// SAFETY: `CpuMemory` is a block of the size asked for, zeroed, aligned to 64, and freed when dropped.
unsafe impl Device for Cpu {
    const NAME: &'static str = "cpu";
    type Queue = CpuQueue;
    type Memory = CpuMemory;

    fn allocate(_: &CpuQueue, bytes: usize) -> Result<CpuMemory> {
        CpuMemory::zeroed(bytes)
    }

    fn scratch(queue: &CpuQueue, bytes: usize) -> Result<CpuMemory> {
        queue.lent(bytes).map_or_else(|| CpuMemory::zeroed(bytes), Ok)
    }

    fn base(memory: &CpuMemory) -> NonNull<u8> {
        memory.base()
    }

    unsafe fn copy(_: &CpuQueue, copies: &[StridedCopy]) -> Result<()> {
        for copy in copies {
            // SAFETY: the caller's contract is that of `strided`.
            unsafe { copy::strided(copy) };
        }
        Ok(())
    }

    unsafe fn edge(queue: &CpuQueue, copies: &[EdgeCopy]) -> Result<()> {
        // SAFETY: the caller's contract is that of `batch`.
        unsafe { edge::batch(queue, copies) }
    }

    fn synchronize(_: &CpuQueue) -> Result<()> {
        Ok(())
    }
}
