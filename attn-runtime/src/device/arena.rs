//! Scratch memory that is reused from call to call and only ever grows.

use core::cell::{Cell, UnsafeCell};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{Scalar, ViewMut, contiguous_strides, volume};

/// What every tensor taken from an arena is aligned to, in bytes.
const ALIGN: usize = 64;

/// Lends its alignment to the address of an empty tensor.
#[repr(align(64))]
struct Aligned;

/// A growing block of device memory from which a call takes its scratch tensors.
///
/// A call opens a [`Scope`], which takes tensors one after the other; the next scope starts over. When a call needs
/// more than there is, the arena adds a block; the next scope joins all blocks into one. So a sequence of like calls
/// allocates in its first two and never again.
pub struct Arena<D: Device> {
    blocks: UnsafeCell<Vec<Block<D>>>,
    /// How much of the last block is taken, in bytes.
    used: Cell<usize>,
}

struct Block<D: Device> {
    memory: D::Memory,
    bytes: usize,
}

impl<D: Device> Default for Arena<D> {
    fn default() -> Self {
        Self { blocks: UnsafeCell::new(Vec::new()), used: Cell::new(0) }
    }
}

impl<D: Device> Arena<D> {
    /// Starts over: everything taken before is free again.
    ///
    /// # Errors
    /// If several blocks could not be joined into one.
    pub fn open<'a>(&'a mut self, queue: &'a D::Queue) -> Result<Scope<'a, D>> {
        self.used.set(0);
        let blocks = self.blocks.get_mut();
        if blocks.len() > 1 {
            // Work queued by earlier calls may still use the blocks that are about to go.
            D::synchronize(queue)?;
            let bytes = blocks.iter().map(|block| block.bytes).sum();
            blocks.clear();
            blocks.push(Block { memory: D::scratch(queue, bytes)?, bytes });
        }
        Ok(Scope { queue, arena: self })
    }

    /// Bytes held.
    pub fn bytes(&mut self) -> usize {
        self.blocks.get_mut().iter().map(|block| block.bytes).sum()
    }
}

/// One call's access to its device: the queue, and scratch tensors that live until the call ends.
pub struct Scope<'a, D: Device> {
    queue: &'a D::Queue,
    arena: &'a Arena<D>,
}

impl<D: Device> Clone for Scope<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Scope<'_, D> {}

impl<'a, D: Device> Scope<'a, D> {
    /// The queue on which the call's work goes.
    pub const fn queue(&self) -> &'a D::Queue {
        self.queue
    }

    /// Gives `body` a scope of its own, and takes back what it took there: so steps that follow each other on the queue use
    /// the same scratch memory.
    ///
    /// # Safety
    /// While `body` runs, nobody takes a tensor from this scope or a copy of it.
    pub(crate) unsafe fn step<R>(&self, body: impl for<'b> FnOnce(Scope<'b, D>) -> R) -> R {
        let arena = self.arena;
        // SAFETY: as in `take`.
        let blocks = || unsafe { &*arena.blocks.get() }.len();
        let (before, used) = (blocks(), arena.used.get());
        let result = body(*self);
        // A block that was added holds nothing but what `body` took, whose tensors are gone: their lifetime is its own.
        arena.used.set(if blocks() == before { used } else { 0 });
        result
    }

    /// Takes a dense row-major tensor of scratch memory, aligned to 64 bytes. Its contents are arbitrary values.
    ///
    /// # Errors
    /// If the arena had to grow and could not.
    pub fn take<T: Scalar>(&self, shape: [usize; 4]) -> Result<ViewMut<'a, T, D>> {
        const { assert!(align_of::<T>() <= ALIGN, "elements are aligned at most to 64 bytes") };
        let bytes = volume::<T>(shape)?
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_next_multiple_of(ALIGN));
        let bytes = bytes.ok_or(Error::TooLarge { shape, dtype: T::DTYPE })?;
        let arena = self.arena;
        // SAFETY: `Arena` is not `Sync`, and no reference into the vector outlives this function, so this one is
        // alone. Growing moves the `Memory` handles, not the memory (the contract of `Device`).
        let blocks = unsafe { &mut *arena.blocks.get() };
        let room = blocks.last().map_or(0, |block| block.bytes - arena.used.get());
        if room < bytes {
            let size = bytes.max(blocks.last().map_or(0, |block| block.bytes));
            blocks.push(Block { memory: D::scratch(self.queue, size)?, bytes: size });
            arena.used.set(0);
        }
        let offset = arena.used.get();
        let base = match blocks.last() {
            // SAFETY: `offset + bytes` is at most the block's size, by the lines above.
            Some(block) => unsafe { D::base(&block.memory).add(offset) },
            None => core::ptr::NonNull::<Aligned>::dangling().cast(),
        };
        arena.used.set(offset + bytes);
        // SAFETY: the range belongs to a block that lives as long as the borrow `'a` of the arena (blocks are only
        // dropped by `open`, which borrows it anew), is zeroed or holds earlier values, is aligned to 64 since
        // blocks are and sizes are rounded up, and no other tensor gets it until the arena is opened again, or the scope of a
        // `step` ends, which no tensor of its outlives.
        Ok(unsafe { ViewMut::from_raw_parts(base.cast(), shape, contiguous_strides(shape)) })
    }
}

impl<D: Device> core::fmt::Debug for Arena<D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Arena")
            .field("device", &D::NAME)
            .field("used", &self.used.get())
            .finish_non_exhaustive()
    }
}

impl<D: Device> core::fmt::Debug for Scope<'_, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Scope").field("arena", &self.arena).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::{Cpu, CpuQueue};

    fn queue() -> CpuQueue {
        CpuQueue::new(1).unwrap()
    }

    /// Steps use the same memory, in the last block and in one that a step had to add; what was taken before stays.
    #[test]
    fn steps_use_the_same_memory_and_nothing_of_what_was_taken_before() {
        let queue = queue();
        let mut arena = Arena::<Cpu>::default();
        for round in 0..3 {
            let scope = arena.open(&queue).unwrap();
            let kept = scope.take::<f32>([1, 1, 1, 100]).unwrap();
            let kept = kept.base().as_ptr().addr()..kept.base().as_ptr().addr() + 400;
            let mut places = Vec::new();
            for _ in 0..4 {
                let address = |scope: Scope<'_, Cpu>| {
                    scope.take::<f32>([1, 1, 1, 5000]).unwrap().base().as_ptr().addr()
                };
                // SAFETY: nothing else is taken meanwhile.
                places.push(unsafe { scope.step(address) });
            }
            assert!(places.windows(2).all(|pair| pair[0] == pair[1]), "round {round}: {places:x?}");
            assert!(places[0] >= kept.end || places[0] + 20000 <= kept.start, "round {round}");
            let after = scope.take::<f32>([1, 1, 1, 1]).unwrap().base().as_ptr().addr();
            assert!(!kept.contains(&after), "round {round}");
        }
        assert!(arena.bytes() < 2 * 20400 + 1000, "{}", arena.bytes());
    }

    #[test]
    fn tensors_of_one_scope_do_not_overlap() {
        let queue = queue();
        let mut arena = Arena::<Cpu>::default();
        let scope = arena.open(&queue).unwrap();
        let mut ranges: Vec<(usize, usize)> = (1..20)
            .map(|n| {
                let view = scope.take::<f32>([1, n, 3, 7]).unwrap();
                let start = view.base().as_ptr() as usize;
                assert_eq!(start % ALIGN, 0);
                (start, start + n * 21 * 4)
            })
            .collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }

    #[test]
    fn like_calls_stop_growing() {
        let queue = queue();
        let mut arena = Arena::<Cpu>::default();
        let mut sizes = Vec::new();
        for _ in 0..5 {
            let scope = arena.open(&queue).unwrap();
            for n in [100, 3, 5000, 17] {
                scope.take::<f32>([1, 1, n, 8]).unwrap();
            }
            sizes.push(arena.bytes());
        }
        assert_eq!(sizes[1..], [sizes[1]; 4]);
    }

    #[test]
    fn empty_tensors_are_fine() {
        let queue = queue();
        let mut arena = Arena::<Cpu>::default();
        let scope = arena.open(&queue).unwrap();
        assert_eq!(scope.take::<f32>([0, 1, 1, 1]).unwrap().shape(), [0, 1, 1, 1]);
    }
}
