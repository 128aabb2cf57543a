//! A ring may bring its blocks in any order.

use attn::prelude::*;
use proptest::prelude::*;

use crate::cases::{Case, Limits, cases};
use crate::communicator::Witness;
use crate::support::{
    Inputs, Setup, Whole, WithFlash, WithSdpa, assemble, attend, call, lse_error, open, oracle,
    relative_error,
};

fn shuffled<A>(setup: Setup, inputs: &Inputs<f32>, seed: u64) -> Whole<f32>
where
    A: ParallelAttention<Witness, f32>,
{
    let world = World::threads(setup.ranks()).threads_per_rank(1);
    let shards =
        world.run(|comm| call(&mut open::<A, _, f32>(Witness::shuffled(comm, seed), setup)?, inputs));
    assemble(&inputs.problem, setup.sharding, &shards.unwrap_or_else(|error| panic!("{setup}: {error}")))
}

fn run<A>(setup: Setup, inputs: &Inputs<f32>) -> Result<Whole<f32>, TestCaseError>
where
    A: ParallelAttention<attn::ThreadComm, f32>,
{
    attend::<A, f32>(setup, inputs).map_err(|error| TestCaseError::fail(format!("{setup}: {error}")))
}

fn check<A>(case: &Case) -> Result<(), TestCaseError>
where
    A: ParallelAttention<Witness, f32> + ParallelAttention<attn::ThreadComm, f32>,
{
    let Case { setup, problem, seed } = case;
    let inputs = problem.inputs::<f32>(*seed);
    let exact = oracle(&inputs);
    let in_order = run::<A>(*setup, &inputs)?;
    let in_order: Vec<f64> = in_order.rows().iter().map(|x| f64::from(*x)).collect();
    for order in 0..2 {
        let whole = shuffled::<A>(*setup, &inputs, seed ^ order);
        prop_assert!(relative_error(&whole.rows(), &exact.rows()) <= 1e-5);
        prop_assert!(relative_error(&whole.rows(), &in_order) <= 2e-6);
        prop_assert!(lse_error(&whole.all_lse(), &exact.all_lse()) <= 2e-5);
    }
    Ok(())
}

fn rings() -> impl Strategy<Value = Case> {
    cases(Limits::KERNELS).prop_filter("without a ring there are no hops", |case| {
        case.setup.has_ring() && case.setup.sharding.outer > 1
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn hops_in_any_order_come_to_the_same(case in rings(), plain in any::<bool>()) {
        if plain { check::<WithSdpa>(&case) } else { check::<WithFlash>(&case) }?;
    }
}
