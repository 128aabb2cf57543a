//! What a steady call allocates: `attend_into` nothing, `attend` its output.
//!
//! The file holds one test, so that no other test allocates meanwhile.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use attn::Error;
use attn::prelude::*;
use half::bf16;
use support::{WithFlash, WithSdpa};

/// Counts allocations of all threads.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of all ranks in `calls` calls of each kind, once warm: (attend_into, attend).
fn count<A: ParallelAttention<attn::ThreadComm, bf16>>(
    strategy: &str,
    ranks: usize,
    joint: usize,
) -> (usize, usize) {
    const CALLS: usize = 5;
    let line = std::sync::Barrier::new(ranks);
    let counts = World::threads(ranks)
        .threads_per_rank(2)
        .run(|comm| {
            let mut session = Session::<A, _, bf16>::open_with(comm, &ParallelConfig::strategy(strategy))?;
            let x = Tensor::<bf16>::from_fn([1, 70, 4, 16], |_| bf16::ONE)?;
            let text = Tensor::<bf16>::from_fn([1, joint, 4, 16], |_| bf16::ONE)?;
            let metadata = match joint {
                0 => AttentionMetadata::default(),
                _ => AttentionMetadata::joint(&text, &text, &text, JointStrategy::Front),
            };
            let mut out = Tensor::<bf16>::from_fn([1, joint + 70, 4, 16], |_| bf16::ONE)?;
            let mut lse = vec![0.0; 4 * (joint + 70)];
            let mut phase = |owned: bool, calls: usize| -> attn::Result<usize> {
                line.wait();
                let before = ALLOCATIONS.load(Ordering::SeqCst);
                line.wait();
                for _ in 0..calls {
                    if owned {
                        session.attend(&x, &x, &x, &metadata)?;
                    } else {
                        let lse = LseMut::new(&mut lse, [1, 4, joint + 70])?;
                        session.attend_into(&x, &x, &x, &metadata, Outputs::new(&mut out).with_lse(lse))?;
                    }
                }
                line.wait();
                let after = ALLOCATIONS.load(Ordering::SeqCst);
                line.wait();
                Ok(after - before)
            };
            phase(false, 3)?;
            phase(true, 3)?;
            Ok::<_, Error>((phase(false, CALLS)?, phase(true, CALLS)?))
        })
        .unwrap();
    let (into, owned) = counts[0];
    assert_eq!(owned % CALLS, 0);
    (into, owned / CALLS)
}

#[test]
fn steady_calls_allocate_their_output_alone() {
    // A positive control: the counter counts.
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), before + 1);

    for (strategy, ranks) in
        [("none", 1), ("ulysses", 1), ("ulysses", 2), ("ulysses", 4), ("ring", 1), ("ring", 3)]
    {
        for joint in [0, 5] {
            let expected = (0, ranks);
            assert_eq!(
                count::<WithFlash>(strategy, ranks, joint),
                expected,
                "flash, {strategy} on {ranks}, joint {joint}"
            );
            assert_eq!(
                count::<WithSdpa>(strategy, ranks, joint),
                expected,
                "sdpa, {strategy} on {ranks}, joint {joint}"
            );
        }
    }
}
