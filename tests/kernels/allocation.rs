//! What a steady call takes from the host's allocator: nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use attn::comm::threads::Queues;
use attn::cuda;
use attn::prelude::*;
use half::bf16;

use crate::kernels::rig::{DeviceOf, Rig};
use crate::support::WithFlash;

/// Counts the allocations of each thread by itself, since tests run side by side.
pub struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more, and no test looks at it.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call is the system allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Needs [`Counting`] as the program's allocator.
pub fn steady_calls_allocate_nothing<R: Rig>()
where
    WithFlash: ParallelAttention<attn::ThreadComm<DeviceOf<R>>, bf16>,
{
    // A positive control: the counter counts.
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(ALLOCATIONS.get(), before + 1);

    for (strategy, ranks) in [("none", 1), ("ulysses", 1), ("ring", 1), ("ulysses", 2), ("ring", 2)] {
        for joint in [0, 5] {
            let queues: Vec<R::Queue> = (0..ranks).map_while(R::queue).collect();
            if queues.is_empty() {
                return;
            }
            let counts = World::<Queues<DeviceOf<R>>>::on_queues(queues).run(|comm| {
                let queue = comm.queue()?;
                let config = ParallelConfig::strategy(strategy);
                let mut session = Session::<WithFlash, _, bf16>::open_with(comm, &config)?;
                let x = cuda::to_device(&queue, &Tensor::<bf16>::from_fn([1, 70, 4, 64], |_| bf16::ONE)?)?;
                let text =
                    cuda::to_device(&queue, &Tensor::<bf16>::from_fn([1, joint, 4, 64], |_| bf16::ONE)?)?;
                let metadata = match joint {
                    0 => AttentionMetadata::default(),
                    _ => AttentionMetadata::joint(&text, &text, &text, JointStrategy::Front),
                };
                let mut out = Tensor::<bf16, _>::zeros(&queue, [1, joint + 70, 4, 64])?;
                let mut lse = Tensor::<f32, _>::zeros(&queue, [1, 4, joint + 70, 1])?;
                let mut before = 0;
                for round in 0..6 {
                    if round == 3 {
                        before = ALLOCATIONS.get();
                    }
                    let outputs = Outputs::new(&mut out).with_lse(LseMut::from_view(lse.view_mut())?);
                    session.attend_into(&x, &x, &x, &metadata, outputs)?;
                }
                Ok::<_, attn::Error>(ALLOCATIONS.get() - before)
            });
            assert_eq!(counts.unwrap(), vec![0; ranks as usize], "{strategy} on {ranks}, joint {joint}");
        }
    }
}
