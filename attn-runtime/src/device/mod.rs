//! Devices: where tensors live, where kernels queue, and the one primitive that moves data inside a device.

mod arena;
mod copy;
pub mod cpu;
mod edge;

pub use arena::{Arena, Scope};
pub use copy::StridedCopy;
pub use cpu::Cpu;
pub use edge::{EdgeCopy, EdgeNorm, EdgeRope, RopePairs};

use core::ptr::NonNull;

use crate::error::Result;

/// A kind of memory and the queue that orders work on it.
///
/// # Safety
/// [`allocate`](Self::allocate) and [`scratch`](Self::scratch) must return memory of at least `bytes` bytes, zeroed, aligned to
/// 64, that stays where [`base`](Self::base) says, untouched by anybody who has not been lent it, until the [`Memory`](Self::Memory) is dropped (also
/// while the `Memory` itself is moved). Dropping a `Memory` waits for all work that names it, or frees it behind that work:
/// what is queued outlives the borrows of views.
pub unsafe trait Device: Sized + 'static {
    /// The device's name, for messages.
    const NAME: &'static str;

    /// What orders work: a team of threads, a CUDA stream. Clones are handles of the same queue.
    type Queue: Clone + Send + Sync + 'static;

    /// An allocation, freed when dropped.
    type Memory: Send + Sync + 'static;

    /// Allocates zeroed memory.
    ///
    /// # Errors
    /// If it cannot be had.
    fn allocate(queue: &Self::Queue, bytes: usize) -> Result<Self::Memory>;

    /// Allocates zeroed memory for an [`Arena`]: memory that other ranks reach quickly, where there is such.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    fn scratch(queue: &Self::Queue, bytes: usize) -> Result<Self::Memory> {
        Self::allocate(queue, bytes)
    }

    /// The address of an allocation's first byte.
    fn base(memory: &Self::Memory) -> NonNull<u8>;

    /// Makes a batch of strided copies, in the order of the queue.
    ///
    /// # Safety
    /// Each copy's source elements must be initialised memory that this device can read and nobody writes, its
    /// destination elements memory that nobody else touches, until the queue has passed the call; no destination may
    /// overlap a source of the batch. Destinations may overlap each other: what stands there afterwards is then one of
    /// the copies' elements, no matter which.
    ///
    /// # Errors
    /// If the device reports one.
    unsafe fn copy(queue: &Self::Queue, copies: &[StridedCopy]) -> Result<()>;

    /// Makes a batch of copies of rows that are normalised and rotated on their way, in the order of the queue. What it does
    /// not take it refuses whole, copies of no elements included: then all ranks refuse the same.
    ///
    /// A device that says nothing makes none.
    ///
    /// # Safety
    /// As [`copy`](Self::copy); weights and tables are read as sources are.
    ///
    /// # Errors
    /// If the device does not take a copy, or reports an error.
    unsafe fn edge(_: &Self::Queue, _: &[EdgeCopy]) -> Result<()> {
        Err(edge::none_made::<Self>())
    }

    /// Waits until everything queued has happened.
    ///
    /// # Errors
    /// If the device reports one.
    fn synchronize(queue: &Self::Queue) -> Result<()>;

    /// Lets what is queued on each of these read the memory of all others, for ranks that share a process. Devices whose
    /// memory is one need nothing.
    ///
    /// # Errors
    /// If two of them cannot reach each other.
    fn connect(_: &[Self::Queue]) -> Result<()> {
        Ok(())
    }
}
