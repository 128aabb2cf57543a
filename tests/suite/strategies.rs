//! Every strategy, as it is among threads.

use attn::prelude::*;
use attn::{Cpu, Traffic};

use crate::support::{Inputs, Problem, Setup, WithFlash, call, open};

/// Every strategy gives this rank the very bits that it gives a rank among threads, and moves as much.
pub fn strategies_agree_with_threads<C: Communicator<Device = Cpu>>(comm: &C) -> attn::Result<()>
where
    WithFlash: ParallelAttention<C, f32>,
{
    let (rank, ranks) = (comm.rank(), comm.size());
    let problems = [
        Problem::new(2, 48, 2 * ranks.max(4), 16).kv_heads(ranks.max(4)),
        Problem::new(1, 48, 2 * ranks, 8).causal().joint(0, JointStrategy::Front),
        Problem::new(1, 23, 6, 8).kv_heads(3).window(5, 2).key_lengths(),
        Problem::new(1, 24, 2 * ranks, 8).joint(3, JointStrategy::Rear).dense(true),
    ];
    for (seed, problem) in problems.into_iter().enumerate() {
        let inputs = problem.inputs::<f32>(seed as u64);
        for setup in Setup::of_ranks(ranks) {
            let setup = if setup.takes(&problem) { setup } else { setup.uneven() };
            if setup.strategy == "none" && !setup.takes(&problem) {
                continue;
            }
            let ((expected, expected_lse), expected_moved) = &among_threads(setup, &inputs)?[rank];
            let mut session = open::<WithFlash, C, f32>(comm.split(0, rank)?, setup)?;
            let opened = session.traffic();
            let (out, lse) = call(&mut session, &inputs)?;
            let moved = session.traffic() - opened;
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(out.as_slice()), bits(expected.as_slice()), "{setup}, {problem:?}");
            assert_eq!(bits(&lse), bits(expected_lse), "{setup}, {problem:?}");
            assert_eq!(moved, *expected_moved, "{setup}, {problem:?}");
        }
    }
    Ok(())
}

/// One rank's output and LSE, and what it moved.
type Part = ((Tensor<f32>, Vec<f32>), Traffic);

/// What each rank gets among threads.
fn among_threads(setup: Setup, inputs: &Inputs<f32>) -> attn::Result<Vec<Part>> {
    World::threads(setup.ranks()).threads_per_rank(1).run(|comm| {
        let mut session = open::<WithFlash, _, f32>(comm, setup)?;
        let opened = session.traffic();
        Ok((call(&mut session, inputs)?, session.traffic() - opened))
    })
}
