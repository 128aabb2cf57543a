//! What each rank of a world does in which something goes wrong: opens a session and attends, and attends again. (A rank that
//! has all it needs when another one dies ends its call well, and hears of the death in the next.)

use attn::prelude::*;
use attn::{Cpu, Error};

use super::injector::{Faulty, Plan, quietly};
use crate::support::{Problem, Setup, WithFlash, call, open};

/// The strategies, on four ranks.
pub(crate) const SETUPS: [Setup; 5] = [
    Setup::ulysses(4),
    Setup::ring(4),
    Setup::hybrid(2, 2),
    Setup::allgather_kv(4),
    Setup::ulysses_allgather(2, 2),
];

/// Ranks of every world.
pub(crate) const RANKS: usize = 4;

/// One rank's life, of so many calls; the points that it came to.
pub(crate) fn live<C>(
    comm: C,
    setup: Setup,
    plan: Option<Plan>,
    calls: usize,
) -> (attn::Result<()>, Vec<String>)
where
    C: Communicator<Device = Cpu>,
{
    let comm = Faulty::new(comm, plan);
    let points = comm.points();
    let inputs = Problem::new(1, 32, 8, 8).inputs::<f32>(1);
    let outcome = open::<WithFlash, _, f32>(comm, setup)
        .and_then(|mut session| (0..calls).try_for_each(|_| call(&mut session, &inputs).map(drop)));
    (quietly(outcome), points())
}

/// Where a rank can go wrong in a strategy's first call, in order.
pub(crate) fn points(setup: Setup) -> Vec<String> {
    let ranks = World::threads(RANKS)
        .threads_per_rank(1)
        .run(|comm| {
            let (outcome, points) = live(comm, setup, None, 1);
            outcome.map(|()| points)
        })
        .map_err(|error: Error| error.to_string());
    ranks.unwrap_or_default().into_iter().next().unwrap_or_default()
}
