//! Every strategy over the communicator: as between threads that read each other's memory, bit by bit, and as float64.

use attn::cuda::GpuComm;
use attn::prelude::*;
use attn::{Error, JointStrategy, ThreadComm, Traffic};
use half::bf16;

use super::run;
use crate::kernels::rig::{DeviceOf, Rig};
use crate::kernels::strategies::{gpu_edges, part_with};
use crate::support::{Problem, Setup, Whole, WholeEdges, WithFlash, assemble, oracle, relative_error};

/// What each rank makes of the inputs, and what it moved.
type Parts = Vec<((Tensor<bf16>, Vec<f32>), Traffic)>;

/// Both communicators give the same bits, and send as many bytes; and the result is right.
#[track_caller]
fn check<R: Rig>(problem: Problem, setups: &[Setup])
where
    WithFlash:
        ParallelAttention<GpuComm<DeviceOf<R>>, bf16> + ParallelAttention<ThreadComm<DeviceOf<R>>, bf16>,
{
    check_with::<R>(problem, setups, None);
}

/// [`check`], with something done to queries and keys on their way.
#[track_caller]
fn check_with<R: Rig>(problem: Problem, setups: &[Setup], edges: Option<&WholeEdges<bf16>>)
where
    WithFlash:
        ParallelAttention<GpuComm<DeviceOf<R>>, bf16> + ParallelAttention<ThreadComm<DeviceOf<R>>, bf16>,
{
    let inputs = problem.inputs::<bf16>(31);
    let exact = oracle(&edges.map_or_else(|| inputs.clone(), |edges| edges.done(&inputs)));
    for &setup in setups {
        let whole = |parts: Parts| {
            let (shards, traffic): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            (assemble(&problem, setup.sharding, &shards), traffic)
        };
        let found: Option<Parts> = run::<R, _>(setup.ranks(), |comm| {
            let witness = comm.clone();
            let part = part_with::<R, bf16, _>(comm, setup, &inputs, edges)?;
            Ok((part, witness.traffic()))
        });
        let Some(found) = found else { return };
        let queues: Vec<R::Queue> = (0..setup.ranks()).map_while(|rank| R::queue(rank as u64)).collect();
        let world = World::<attn::comm::threads::Queues<DeviceOf<R>>>::on_queues(queues);
        let expected: Parts = world
            .run(|comm| {
                let witness = comm.clone();
                let part = part_with::<R, bf16, _>(comm, setup, &inputs, edges)?;
                Ok::<_, Error>((part, witness.traffic()))
            })
            .unwrap();
        let ((found, traffic), (expected, their_traffic)): ((Whole<bf16>, _), (Whole<bf16>, _)) =
            (whole(found), whole(expected));
        assert_eq!(found.bits(), expected.bits(), "{setup}, {problem:?}");
        assert_eq!(traffic, their_traffic, "{setup}, {problem:?}");
        let right = exact.out.iter().chain(&exact.joint).copied().collect::<Vec<f64>>();
        let all = found.out.iter().chain(&found.joint).copied().collect::<Vec<bf16>>();
        let error = relative_error(&all, &right);
        assert!(error < 6e-3, "{setup}, {problem:?}: relative error {error:e}");
    }
}

pub fn ulysses_is_what_threads_compute<R: Rig>()
where
    WithFlash:
        ParallelAttention<GpuComm<DeviceOf<R>>, bf16> + ParallelAttention<ThreadComm<DeviceOf<R>>, bf16>,
{
    check::<R>(Problem::new(1, 96, 4, 64).kv_heads(2).causal(), &[Setup::ulysses(2)]);
    check::<R>(Problem::new(2, 64, 4, 64), &[Setup::ulysses(4)]);
    check::<R>(Problem::new(1, 66, 3, 64).joint(5, JointStrategy::Front), &[Setup::ulysses(3)]);
}

pub fn a_ring_is_what_threads_compute<R: Rig>()
where
    WithFlash:
        ParallelAttention<GpuComm<DeviceOf<R>>, bf16> + ParallelAttention<ThreadComm<DeviceOf<R>>, bf16>,
{
    let setups = [
        Setup::ring(2),
        Setup::ring(4).layout(RingLayout::Zigzag),
        Setup::ring(3).layout(RingLayout::Striped),
    ];
    check::<R>(Problem::new(1, 96, 2, 64).kv_heads(1).causal(), &setups);
}

pub fn two_dimensions_are_what_threads_compute<R: Rig>()
where
    WithFlash:
        ParallelAttention<GpuComm<DeviceOf<R>>, bf16> + ParallelAttention<ThreadComm<DeviceOf<R>>, bf16>,
{
    let setups = [Setup::hybrid(2, 2), Setup::allgather_kv(3), Setup::ulysses_allgather(2, 2)];
    check::<R>(Problem::new(1, 96, 4, 64).kv_heads(2).causal(), &setups);
}

/// Boxes that edges have packed, and tensors that they have laid out for a ring.
pub fn edges_are_what_threads_compute<R: Rig>()
where
    WithFlash:
        ParallelAttention<GpuComm<DeviceOf<R>>, bf16> + ParallelAttention<ThreadComm<DeviceOf<R>>, bf16>,
{
    let problem = Problem::new(2, 30, 5, 64).kv_heads(5).joint(3, JointStrategy::Front);
    let setups = [Setup::ulysses(2).uneven(), Setup::hybrid(2, 2).uneven(), Setup::ring(2)];
    check_with::<R>(problem, &setups, Some(&gpu_edges(&problem, 9)));
}

/// Shares of different lengths, some of them empty.
pub fn uneven_shares_are_what_threads_compute<R: Rig>()
where
    WithFlash:
        ParallelAttention<GpuComm<DeviceOf<R>>, bf16> + ParallelAttention<ThreadComm<DeviceOf<R>>, bf16>,
{
    let setups = [Setup::ulysses(3).uneven(), Setup::ring(3).uneven(), Setup::hybrid(2, 2).uneven()];
    check::<R>(Problem::new(1, 67, 5, 64).kv_heads(1).causal(), &setups);
    let empty = [Setup::ring(4).uneven(), Setup::allgather_kv(4).uneven(), Setup::ulysses(4).uneven()];
    check::<R>(Problem::new(1, 2, 2, 64).joint(1, JointStrategy::Rear), &empty);
}
