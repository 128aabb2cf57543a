//! Memory of a group's own, for what cannot be sent from where it lies or received where it belongs.

use core::ptr::NonNull;

use attn_runtime::{Error, Result};

use super::watchdog::Watch;
use crate::cuda::launches::Launches;
use crate::cuda::nccl::{Comm, Memory, Registration};

/// What pieces in it are aligned to: more than the copy kernel moves at a time.
pub(super) const ALIGN: usize = 256;

/// A block that only ever grows, known to NCCL where that can be.
pub(super) struct Staging<D: Launches> {
    block: Option<Block<D>>,
    bytes: usize,
    registration: Option<Registration>,
    /// Blocks whose addresses a recorded graph holds.
    kept: Vec<Block<D>>,
    recorded: bool,
}

enum Block<D: Launches> {
    /// Allocated by NCCL, which knows best.
    Own(Memory),
    /// Where NCCL has no memory to give.
    Plain(D::Memory),
}

impl<D: Launches> Block<D> {
    fn base(&self) -> NonNull<u8> {
        match self {
            Self::Own(memory) => memory.base(),
            Self::Plain(memory) => D::base(memory),
        }
    }
}

impl<D: Launches> Default for Staging<D> {
    fn default() -> Self {
        Self { block: None, bytes: 0, registration: None, kept: Vec::new(), recorded: false }
    }
}

impl<D: Launches> Staging<D> {
    /// At least so many bytes.
    ///
    /// # Errors
    /// If the queue records and there are fewer, or the memory cannot be had.
    pub(super) fn take(
        &mut self,
        comm: &mut Comm,
        queue: &D::Queue,
        bytes: usize,
        recording: bool,
    ) -> Result<NonNull<u8>> {
        self.recorded |= recording;
        if let Some(block) = self.block.as_ref().filter(|_| self.bytes >= bytes) {
            return Ok(block.base());
        }
        if recording {
            return Err(Error::Capturing {
                what: "growing a communicator's staging memory",
                cure: "make the call before the capture, on every rank, with the largest shapes",
            });
        }
        if bytes == 0 {
            return Ok(NonNull::dangling());
        }
        self.release(comm, queue)?;
        // Half as much again: lengths that creep up do not grow it each time.
        let bytes = bytes.max(self.bytes + self.bytes / 2).next_multiple_of(ALIGN);
        let own = D::with_stream(queue, |_, _| Memory::allocate(comm.library(), bytes))?;
        let block = match own {
            Some(memory) => Block::Own(memory),
            None => Block::Plain(D::allocate(queue, bytes)?),
        };
        let base = block.base();
        self.block = Some(block);
        self.bytes = bytes;
        // SAFETY: the block is of this size, and is deregistered before it is freed. What NCCL does not know it copies,
        // so an error here costs time alone.
        let registered = D::with_stream(queue, |_, _| unsafe { comm.register(base, bytes) })?;
        self.registration = registered.unwrap_or_else(|error| {
            log::debug!("staging memory of {bytes} bytes was not registered: {error}");
            None
        });
        Ok(base)
    }

    /// Gives the block up.
    fn release(&mut self, comm: &mut Comm, queue: &D::Queue) -> Result<()> {
        if let Some(registration) = self.registration.take() {
            D::synchronize(queue)?;
            comm.deregister(registration)?;
        }
        match self.block.take() {
            // To free it would wait for ranks that share the GPU.
            Some(block) if self.recorded || D::is_crowded(queue) => self.kept.push(block),
            Some(block) => free::<D>(block, queue)?,
            None => {}
        }
        self.recorded = false;
        Ok(())
    }

    /// Before the communicator ends: frees it all, or leaves it where it is if peers may still write there.
    pub(super) fn end(&mut self, comm: &mut Comm, queue: &D::Queue, watch: &Watch<D>) {
        let blocks = self.kept.drain(..).chain(self.block.take());
        if watch.fault().is_some() {
            blocks.for_each(core::mem::forget);
            return;
        }
        if let Some(registration) = self.registration.take() {
            let _ = comm.deregister(registration);
        }
        for block in blocks {
            let _ = free::<D>(block, queue);
        }
    }
}

/// Frees a block once the queue has passed what uses it.
fn free<D: Launches>(block: Block<D>, queue: &D::Queue) -> Result<()> {
    match block {
        Block::Own(memory) => {
            // Whatever uses it is followed by the queue.
            D::synchronize(queue)?;
            // SAFETY: the queue has passed all that uses the block, and its GPU is current.
            D::with_stream(queue, |_, _| unsafe { memory.free() })
        }
        Block::Plain(memory) => {
            drop(memory);
            Ok(())
        }
    }
}
