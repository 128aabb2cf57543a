//! What a steady call allocates: `attend_into` nothing, `attend` its output.
//!
//! The file holds one test, so that no other test allocates meanwhile.

mod support;

use attn::prelude::*;
use attn::{Edge, Edges, Error, RmsNorm, Rope, RopePairs};
use half::bf16;
use support::counting::{Counting, of_process};
use support::{Setup, WithFlash, WithSdpa, open};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of all ranks in `calls` calls of each kind, once warm: (attend_into, attend).
fn count<A: ParallelAttention<attn::ThreadComm, bf16>>(
    setup: Setup,
    joint: usize,
    masked: bool,
    edged: bool,
) -> (usize, usize) {
    const CALLS: usize = 5;
    let ranks = setup.ranks();
    let seq = 70 * ranks;
    let (lengths, ids) = ([seq - 33], (0..seq).map(|t| (t / 50) as i32).collect::<Vec<_>>());
    let dense =
        Tensor::<u8>::from_fn([1, 1, joint + seq, joint + seq], |[_, _, i, j]| u8::from((i + j) % 3 > 0))
            .unwrap();
    let line = std::sync::Barrier::new(ranks);
    let counts = World::threads(ranks)
        .threads_per_rank(2)
        .run(|comm| {
            let mut session = open::<A, _, bf16>(comm, setup)?;
            let x = Tensor::<bf16>::from_fn([1, 70, 4, 16], |_| bf16::ONE)?;
            let text = Tensor::<bf16>::from_fn([1, joint, 4, 16], |_| bf16::ONE)?;
            let mut metadata = match joint {
                0 => AttentionMetadata::default(),
                _ => AttentionMetadata::joint(&text, &text, &text, JointStrategy::Front),
            }
            .with_sequence(seq, seq);
            if masked {
                metadata = metadata.with_key_lengths(&lengths).with_dense(&dense);
            }
            if masked && joint == 0 {
                metadata = metadata.with_causal().with_segments(Segments::of(&ids));
            }
            let weight = Tensor::<bf16>::from_fn([1, 1, 4, 16], |_| bf16::ONE)?;
            let tables = [70, joint].map(|rows| Tensor::<f32>::from_fn([1, rows, 1, 6], |_| 0.5).unwrap());
            let [of_tokens, of_text] = tables.each_ref().map(|table| Edge {
                norm: Some(RmsNorm { weight: Some(weight.view()), eps: 1e-6 }),
                rope: Some(Rope { cos: table.view(), sin: table.view(), pairs: RopePairs::Halves }),
            });
            let mut edges = Edges { query: of_tokens, key: of_tokens, ..Edges::default() };
            if joint > 0 {
                edges = Edges { joint_query: of_text, joint_key: of_text, ..edges };
            }
            if edged {
                metadata = metadata.with_edges(&edges);
            }
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

    for setup in [
        Setup::NONE,
        Setup::ulysses(1),
        Setup::ulysses(2),
        Setup::ulysses(4),
        Setup::ring(1),
        Setup::ring(3),
        Setup::ring(2).layout(RingLayout::Zigzag),
        Setup::hybrid(2, 2).layout(RingLayout::Striped),
        Setup::hybrid(3, 2).uneven(),
        Setup::allgather_kv(3),
        Setup::ulysses_allgather(2, 2).uneven(),
    ] {
        for (joint, masked, edged) in [
            (0, false, false),
            (0, true, false),
            (5, false, false),
            (5, true, false),
            (0, false, true),
            (5, true, true),
        ] {
            let expected = (0, setup.ranks());
            let says = format!("{setup}, joint {joint}, masked: {masked}, edged: {edged}");
            assert_eq!(count::<WithFlash>(setup, joint, masked, edged), expected, "flash, {says}");
            assert_eq!(count::<WithSdpa>(setup, joint, masked, edged), expected, "sdpa, {says}");
        }
    }
}
