//! One session serves calls of any shapes, masks and placements, one after the other: what earlier calls planned and left
//! in its memory does not show.

use attn::prelude::*;
use attn::{Error, KeyPlacement, Mask, ThreadComm};
use proptest::prelude::*;

use crate::cases::{Case, Limits, cases};
use crate::support::{Inputs, Problem, Random, Setup, WithFlash, WithSdpa, assemble, attend, call, open};

fn check<A>(setup: Setup, calls: &[Inputs<f32>]) -> Result<(), TestCaseError>
where
    A: ParallelAttention<ThreadComm, f32>,
{
    let fail = |error: Error| TestCaseError::fail(format!("{setup}: {error}"));
    let by_rank = World::threads(setup.ranks()).threads_per_rank(1).run(|comm| {
        let mut session = open::<A, _, f32>(comm, setup)?;
        calls.iter().map(|inputs| call(&mut session, inputs)).collect::<attn::Result<Vec<_>>>()
    });
    let by_rank = by_rank.map_err(fail)?;
    for (index, inputs) in calls.iter().enumerate() {
        let shards: Vec<_> = by_rank.iter().map(|results| results[index].clone()).collect();
        let found = assemble(&inputs.problem, setup.sharding, &shards);
        let alone = attend::<A, f32>(setup, inputs).map_err(fail)?;
        prop_assert_eq!(found.bits(), alone.bits(), "{}, call {}: {:?}", setup, index, inputs.problem);
    }
    Ok(())
}

/// The same shapes with other masks, other placements of keys and another order of joint tokens.
fn relatives(problem: Problem) -> Vec<Problem> {
    let keys = |keys| move |problem: Problem| Problem { keys, ..problem };
    let [sharded, replicated] = [KeyPlacement::Sharded, KeyPlacement::Replicated].map(keys);
    let bare = Problem { mask: Mask::NONE, ..problem };
    let relatives = if problem.joint > 0 {
        let [front, rear] =
            [JointStrategy::Front, JointStrategy::Rear].map(|order| bare.joint(problem.joint, order));
        vec![front, rear, rear.key_lengths(), front.dense(true)]
    } else {
        vec![bare, bare.causal(), bare.window(1, 2), bare.window(0, 0).segments(), bare.key_lengths()]
    };
    relatives.iter().flat_map(|problem| [sharded(*problem), replicated(*problem), *problem]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn calls_leave_nothing_behind_for_the_next(
        first in cases(Limits::KERNELS),
        other in cases(Limits::KERNELS),
        plain in any::<bool>(),
    ) {
        // Uneven shares suit every problem.
        let Case { setup, seed, .. } = first;
        let setup = if setup == Setup::NONE { setup } else { setup.uneven() };
        let problems = [&[other.problem, first.problem][..], &relatives(first.problem)].concat();
        let mut inputs: Vec<Inputs<f32>> =
            problems.iter().zip(0..).map(|(problem, n)| problem.inputs(seed.wrapping_add(n))).collect();
        let mut random = Random(seed);
        let calls: Vec<Inputs<f32>> =
            (0..inputs.len()).map(|_| inputs.swap_remove(random.below(inputs.len()))).collect();
        if plain { check::<WithSdpa>(setup, &calls) } else { check::<WithFlash>(setup, &calls) }?;
    }
}
