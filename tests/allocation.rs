//! What a steady call allocates: `attend_into` nothing, `attend` its output.
//!
//! The file holds one test, so that no other test allocates meanwhile.

mod support;

use attn::Error;
use attn::prelude::*;
use half::bf16;
use support::counting::{Counting, of_process};
use support::{WithFlash, WithSdpa};

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
                let before = of_process();
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
                let after = of_process();
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
    let before = of_process();
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(of_process(), before + 1);

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
