//! Bytes on their way.

use core::fmt;
use core::ops::Deref;

use crate::device::cpu::CpuMemory;
use crate::error::Result;

/// The body of a message: bytes in memory that is aligned as tensors are, so that a block can be computed on where it
/// lies.
pub struct Bytes {
    memory: CpuMemory,
    length: usize,
}

impl Bytes {
    /// So many zeros.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn zeroed(length: usize) -> Result<Self> {
        Ok(Self { memory: CpuMemory::zeroed(length)?, length })
    }

    /// A copy.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn copied(bytes: &[u8]) -> Result<Self> {
        let mut copy = Self::zeroed(bytes.len())?;
        copy.as_mut_slice().copy_from_slice(bytes);
        Ok(copy)
    }

    /// To be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the memory is at least so long, initialised, and borrowed exclusively with `self`.
        unsafe { core::slice::from_raw_parts_mut(self.memory.base().as_ptr(), self.length) }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is at least so long, initialised, and nobody writes it while `self` is borrowed.
        unsafe { core::slice::from_raw_parts(self.memory.base().as_ptr(), self.length) }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.length)
    }
}
