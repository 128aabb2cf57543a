//! What a steady call takes from the host's allocator: nothing.

use attn::comm::threads::Queues;
use attn::cuda;
use attn::prelude::*;
use attn::{Edge, Edges, RmsNorm, Rope, RopePairs};
use half::bf16;

use crate::kernels::rig::{DeviceOf, Rig};
use crate::support::WithFlash;
use crate::support::counting::of_thread;

/// Needs [`Counting`](crate::support::counting::Counting) as the program's allocator.
pub fn steady_calls_allocate_nothing<R: Rig>()
where
    WithFlash: ParallelAttention<attn::ThreadComm<DeviceOf<R>>, bf16>,
{
    // A positive control: the counter counts.
    let before = of_thread();
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(of_thread(), before + 1);

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
                // Some of the last rank's keys are padding.
                let lengths = [70 * ranks as usize - 10];
                let mut metadata = metadata.with_key_lengths(&lengths);
                let table = cuda::to_device(&queue, &Tensor::<f32>::from_fn([1, 70, 1, 16], |_| 0.5)?)?;
                let edge = Edge {
                    norm: Some(RmsNorm { weight: None, eps: 1e-6 }),
                    rope: Some(Rope { cos: table.view(), sin: table.view(), pairs: RopePairs::Halves }),
                };
                let edges = Edges { query: edge, key: edge, ..Edges::default() };
                if joint == 0 {
                    metadata = metadata.with_edges(&edges);
                }
                let mut out = Tensor::<bf16, _>::zeros(&queue, [1, joint + 70, 4, 64])?;
                let mut lse = Tensor::<f32, _>::zeros(&queue, [1, 4, joint + 70, 1])?;
                let mut before = 0;
                for round in 0..6 {
                    if round == 3 {
                        before = of_thread();
                    }
                    let outputs = Outputs::new(&mut out).with_lse(LseMut::from_view(lse.view_mut())?);
                    session.attend_into(&x, &x, &x, &metadata, outputs)?;
                }
                Ok::<_, attn::Error>(of_thread() - before)
            });
            assert_eq!(counts.unwrap(), vec![0; ranks as usize], "{strategy} on {ranks}, joint {joint}");
        }
    }
}
