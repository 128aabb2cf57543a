//! Memory of the host, aligned to a cache line: heap blocks, and what somebody lends.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::device::{Cpu, Device};
use crate::error::{Error, Result};

const ALIGN: usize = 64;

/// A block of memory, aligned to 64 bytes, zeroed when allocated.
pub struct CpuMemory {
    base: NonNull<u8>,
    bytes: usize,
    /// Whose it is; the heap's if nobody's.
    owner: Option<Arc<dyn Send + Sync>>,
}

/// Who lends memory for scratch tensors that others than this process reach.
pub(crate) trait Lender: Send + Sync {
    /// So many bytes, zeroed; none if they are better taken from the heap.
    fn lend(&self, bytes: usize) -> Option<CpuMemory>;
}

// SAFETY: the block is owned, like a `Box<[u8]>`.
unsafe impl Send for CpuMemory {}
// SAFETY: as above.
unsafe impl Sync for CpuMemory {}

impl CpuMemory {
    /// Allocates `bytes` zeroed bytes.
    ///
    /// # Errors
    /// If the allocator has no more.
    pub fn zeroed(bytes: usize) -> Result<Self> {
        let failed = || Error::OutOfMemory { device: Cpu::NAME, bytes };
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| failed())?;
        if bytes == 0 {
            return Ok(Self { base: NonNull::<Aligned>::dangling().cast(), bytes, owner: None });
        }
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(failed)?;
        Ok(Self { base, bytes, owner: None })
    }

    /// Memory that is part of something else.
    ///
    /// # Safety
    /// While there is an `owner`, the `bytes` bytes from `base` on, which is aligned to 64, are initialised, and nobody else
    /// touches them who has not been lent them.
    pub(crate) unsafe fn owned_by(owner: Arc<dyn Send + Sync>, base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes, owner: Some(owner) }
    }

    /// The address of the first byte.
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// All bytes.
    pub const fn bytes(&self) -> &[u8] {
        // SAFETY: the block holds `bytes` initialised bytes and is borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes) }
    }

    /// All bytes.
    pub const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.bytes) }
    }
}

/// Lends its alignment to the address of an empty block.
#[repr(align(64))]
struct Aligned;

impl Drop for CpuMemory {
    fn drop(&mut self) {
        if let (None, 1.., Ok(layout)) = (&self.owner, self.bytes, Layout::from_size_align(self.bytes, ALIGN))
        {
            // SAFETY: `zeroed` allocated the block with this very layout.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
    }
}
