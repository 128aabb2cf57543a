//! Every strategy on the device: as one rank, and as float64.

use attn::comm::threads::Queues;
use attn::cuda::{self, GpuQueue, Half};
use attn::prelude::*;
use attn::{Edges, JointStrategy, KeyPlacement, RopePairs, ThreadComm};

use crate::kernels::case::roundoff;
use crate::kernels::edge::EdgeThere;
use crate::kernels::rig::{DeviceOf, Rig};
use crate::support::{
    Inputs, Problem, Random, Setup, Whole, WholeEdge, WholeEdges, WithFlash, angles, assemble, lse_error,
    open, oracle, relative_error, share,
};

/// Shards the inputs over the ranks, attends on the device, and puts the parts together. None if there is no device.
fn attend<R: Rig, T: Half>(setup: Setup, inputs: &Inputs<T>) -> Option<Whole<T>>
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    attend_with::<R, T>(setup, inputs, None)
}

fn attend_with<R: Rig, T: Half>(
    setup: Setup,
    inputs: &Inputs<T>,
    edges: Option<&WholeEdges<T>>,
) -> Option<Whole<T>>
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    let queues: Vec<R::Queue> = (0..setup.ranks()).map_while(|rank| R::queue(rank as u64)).collect();
    if queues.is_empty() {
        return None;
    }
    let shards = World::<Queues<DeviceOf<R>>>::on_queues(queues)
        .run(|comm| part_with::<R, T, _>(comm, setup, inputs, edges));
    let shards = shards.unwrap_or_else(|error| panic!("{setup}, {:?}: {error}", inputs.problem));
    Some(assemble(&inputs.problem, setup.sharding, &shards))
}

/// One rank's part: its share of the output, and of the LSE.
pub fn part<R: Rig, T: Half, C>(
    comm: C,
    setup: Setup,
    inputs: &Inputs<T>,
) -> attn::Result<(Tensor<T>, Vec<f32>)>
where
    C: Communicator<Device = DeviceOf<R>>,
    WithFlash: ParallelAttention<C, T>,
{
    part_with::<R, T, C>(comm, setup, inputs, None)
}

/// [`part`], with something done to queries and keys on their way.
pub fn part_with<R: Rig, T: Half, C>(
    comm: C,
    setup: Setup,
    inputs: &Inputs<T>,
    edges: Option<&WholeEdges<T>>,
) -> attn::Result<(Tensor<T>, Vec<f32>)>
where
    C: Communicator<Device = DeviceOf<R>>,
    WithFlash: ParallelAttention<C, T>,
{
    part_by::<WithFlash, R, T, C>(comm, setup, inputs, edges).map(|(part, _)| part)
}

/// [`part_with`], by any pipeline; and what this rank has sent to others in each of its two calls.
pub fn part_by<A, R: Rig, T: Half, C>(
    comm: C,
    setup: Setup,
    inputs: &Inputs<T>,
    edges: Option<&WholeEdges<T>>,
) -> attn::Result<((Tensor<T>, Vec<f32>), u64)>
where
    C: Communicator<Device = DeviceOf<R>>,
    A: ParallelAttention<C, T>,
{
    let Problem { batch, seq_q, seq_k, heads, head_dim, joint, order, mask, keys, .. } = inputs.problem;
    let sharding = setup.sharding;
    let (queue, rank) = (comm.queue()?, comm.rank());
    let mut session = open::<A, _, T>(comm, setup)?;
    let shard = |tensor: &Tensor<T>, keys: KeyPlacement| match keys {
        KeyPlacement::Replicated => cuda::to_device(&queue, tensor),
        KeyPlacement::Sharded => {
            let positions = sharding.sequence(tensor.shape()[1]).unwrap().positions(rank);
            cuda::to_device(&queue, &share(tensor, &positions, attn::TensorLayout::Bshd)?)
        }
    };
    let query = shard(&inputs.query, KeyPlacement::Sharded)?;
    let (key, value) = (shard(&inputs.key, keys)?, shard(&inputs.value, keys)?);
    let joint_tensors = match &inputs.joint {
        Some([q, k, v]) => {
            Some([cuda::to_device(&queue, q)?, cuda::to_device(&queue, k)?, cuda::to_device(&queue, v)?])
        }
        None => None,
    };
    let mut metadata = match &joint_tensors {
        Some([query, key, value]) => AttentionMetadata::joint(query, key, value, order),
        None => AttentionMetadata::default(),
    };
    metadata.span = Some(mask.span);
    metadata.key_lengths = inputs.key_lengths.as_deref();
    metadata.segments = inputs.segments.as_ref().map(|[query, key]| Segments { query, key });
    let dense = inputs.dense.as_ref().map(|dense| cuda::to_device(&queue, dense)).transpose()?;
    metadata.dense = dense.as_ref().map(Tensor::view);
    metadata.keys = keys;
    metadata = metadata.with_sequence(seq_q, seq_k);
    let mine = |seq: usize, keys: KeyPlacement| match keys {
        KeyPlacement::Sharded => sharding.sequence(seq).unwrap().positions(rank),
        KeyPlacement::Replicated => attn::Run::of(0..seq).into(),
    };
    let edges = match edges {
        Some(edges) => {
            let share = edges.share(&mine(seq_q, KeyPlacement::Sharded), &mine(seq_k, keys))?;
            let there = [&share.query, &share.key, &share.joint_query, &share.joint_key];
            let mut there = there.into_iter().map(|edge| EdgeThere::new(&queue, edge));
            let mut next = || there.next().expect("there are four");
            Some([next()?, next()?, next()?, next()?])
        }
        None => None,
    };
    let edges = edges.as_ref().map(|[query, key, joint_query, joint_key]| Edges {
        query: query.view(),
        key: key.view(),
        joint_query: joint_query.view(),
        joint_key: joint_key.view(),
    });
    metadata.edges = edges.as_ref();
    let rows = joint + query.shape()[1];
    let mut out = poisoned::<T, R>(&queue, [batch, rows, heads, head_dim])?;
    let mut lse = poisoned::<f32, R>(&queue, [batch, heads, rows, 1])?;
    // Twice, so that scratch memory is used again.
    for _ in 0..2 {
        let outputs = Outputs::new(&mut out).with_lse(LseMut::from_view(lse.view_mut())?);
        session.attend_into(&query, &key, &value, &metadata, outputs)?;
    }
    let (out, lse) = (cuda::to_host(&queue, &out)?, cuda::to_host(&queue, &lse)?);
    Ok(((out, lse.as_slice().to_vec()), session.traffic().sent / 2))
}

fn poisoned<T: Element, R: Rig>(
    queue: &R::Queue,
    shape: [usize; 4],
) -> attn::Result<Tensor<T, <R::Queue as GpuQueue>::Device>> {
    cuda::to_device(queue, &Tensor::<T>::from_fn(shape, |_| T::from_f32(f32::NAN))?)
}

/// Makes padded keys NaN.
pub fn poison_padding<T: Half>(inputs: &mut Inputs<T>) {
    let Problem { seq_k, kv_heads, head_dim, .. } = inputs.problem;
    let row = kv_heads * head_dim;
    for (b, length) in inputs.key_lengths.iter().flatten().enumerate() {
        let padding = (b * seq_k + length) * row..(b + 1) * seq_k * row;
        inputs.key.as_mut_slice()[padding.clone()].fill(T::from_f32(f32::NAN));
        inputs.value.as_mut_slice()[padding].fill(T::from_f32(f32::NAN));
    }
}

/// Every setup against float64 and against one rank: Ulysses bit by bit, since it computes the same rows of the same
/// heads; the others within rounding, since they cut queries or keys elsewhere.
#[track_caller]
fn verify<R: Rig, T: Half>(problem: Problem, seeds: u64, setups: &[Setup])
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    for seed in 0..seeds {
        let mut inputs = problem.inputs::<T>(seed);
        poison_padding(&mut inputs);
        let exact = oracle(&inputs);
        let Some(one) = attend::<R, T>(Setup::NONE, &inputs) else { return };
        let near = |setup: Setup, whole: &Whole<T>| {
            let error = relative_error(&whole.rows(), &exact.rows());
            // Weights and results are rounded, each by at most half a unit; on the whole that is far less.
            assert!(error <= 1.1 * roundoff::<T>(), "{setup}, {problem:?}: relative error {error:e}");
            let lse = lse_error(&whole.all_lse(), &exact.all_lse());
            assert!(lse <= 2e-5, "{setup}, {problem:?}: log-sum-exp is off by {lse:e}");
        };
        near(Setup::NONE, &one);
        for &setup in setups {
            assert!(setup.takes(&problem), "{setup} takes {problem:?}");
            let whole = attend::<R, T>(setup, &inputs).unwrap();
            near(setup, &whole);
            if setup.strategy == "ulysses" {
                assert_eq!(whole.bits(), one.bits(), "{setup}, {problem:?}");
            }
        }
    }
}

/// Ulysses and ring, each over so many ranks.
fn plain(ranks: &[usize]) -> Vec<Setup> {
    ranks.iter().flat_map(|&ranks| [Setup::ulysses(ranks), Setup::ring(ranks)]).collect()
}

/// Every other strategy, and every layout of a ring.
const OTHERS: [Setup; 6] = [
    Setup::ring(2).layout(RingLayout::Zigzag),
    Setup::ring(3).layout(RingLayout::Striped),
    Setup::hybrid(2, 2),
    Setup::hybrid(2, 2).layout(RingLayout::Zigzag),
    Setup::allgather_kv(3),
    Setup::ulysses_allgather(2, 2),
];

pub fn two_and_four_ranks_are_one<R: Rig, T: Half>()
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    verify::<R, T>(Problem::new(1, 136, 4, 64), 3, &plain(&[1, 2, 4]));
    verify::<R, T>(Problem::new(2, 72, 4, 128).kv_heads(2), 1, &plain(&[2]));
    verify::<R, T>(Problem::new(1, 96, 4, 64).kv_heads(2), 1, &OTHERS);
}

pub fn causal_masks_cross_ranks<R: Rig, T: Half>()
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    verify::<R, T>(Problem::new(1, 264, 4, 64).kv_heads(2).causal(), 1, &plain(&[2, 4]));
    // Fewer keys than queries: the first rows attend nothing.
    verify::<R, T>(Problem::new(1, 160, 4, 64).seq_k(96).causal(), 1, &plain(&[2]));
    verify::<R, T>(Problem::new(1, 96, 4, 64).seq_k(160).causal(), 1, &plain(&[4]));
    verify::<R, T>(Problem::new(1, 144, 4, 64).kv_heads(2).causal(), 1, &OTHERS);
    verify::<R, T>(Problem::new(1, 96, 4, 64).kv_heads(1).seq_k(72).window(20, 5), 1, &OTHERS);
}

pub fn padding_crosses_ranks<R: Rig, T: Half>()
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    verify::<R, T>(Problem::new(3, 72, 4, 64).kv_heads(2).key_lengths(), 2, &plain(&[2, 4]));
    verify::<R, T>(Problem::new(3, 72, 4, 64).kv_heads(2).key_lengths(), 1, &OTHERS);
    verify::<R, T>(Problem::new(2, 96, 4, 64).kv_heads(1).key_lengths().causal(), 1, &OTHERS);
    let replicated = Problem::new(2, 48, 4, 64).seq_k(77).replicated_keys().key_lengths();
    verify::<R, T>(replicated, 1, &[Setup::ring(2), Setup::hybrid(2, 2), Setup::allgather_kv(3)]);
}

pub fn joint_tokens_are_attended_once<R: Rig, T: Half>()
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    verify::<R, T>(Problem::new(1, 128, 4, 64).joint(13, JointStrategy::Front), 1, &plain(&[2, 4]));
    verify::<R, T>(Problem::new(2, 64, 4, 64).kv_heads(2).joint(70, JointStrategy::Rear), 1, &plain(&[2]));
    // Fewer joint rows than ranks.
    verify::<R, T>(Problem::new(1, 64, 4, 64).joint(3, JointStrategy::Rear), 1, &plain(&[4]));
    let padded = Problem::new(2, 48, 4, 64).kv_heads(2).joint(5, JointStrategy::Front).key_lengths();
    verify::<R, T>(padded, 1, &OTHERS);
}

/// Uneven shares, some of them empty.
pub fn uneven_shares_cover_the_whole<R: Rig, T: Half>()
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    let uneven = [
        Setup::ulysses(3).uneven(),
        Setup::ring(3).uneven(),
        Setup::hybrid(2, 2).layout(RingLayout::Striped).uneven(),
        Setup::allgather_kv(4).uneven(),
        Setup::ulysses_allgather(2, 2).uneven(),
    ];
    verify::<R, T>(Problem::new(1, 67, 5, 64).kv_heads(1).causal(), 1, &uneven);
    verify::<R, T>(Problem::new(2, 41, 6, 64).kv_heads(3).seq_k(30).key_lengths(), 1, &uneven);
    verify::<R, T>(Problem::new(1, 2, 4, 64).joint(1, JointStrategy::Front), 1, &uneven);
}

/// Norms and rotations that the kernel takes, of queries and keys and joint tokens.
pub fn gpu_edges<T: Half>(problem: &Problem, seed: u64) -> WholeEdges<T> {
    let Problem { batch, seq_q, seq_k, heads, kv_heads, head_dim, joint, .. } = *problem;
    let mut random = Random(seed);
    let mut edge = |seq: usize, heads: usize| {
        if seq == 0 {
            return WholeEdge::NONE;
        }
        let mut edge = WholeEdge::random(&mut random, [batch, seq, heads, head_dim]);
        // Neither is left out, and pairs are as the kernel counts them.
        edge.norm.get_or_insert((None, 1e-6));
        let order = edge.rope.map_or(RopePairs::Halves, |(_, order)| order);
        let angle = |[b, s, _, i]: [usize; 4]| (b + 2 * s) as f64 / 30_f64.powf(i as f64 / 16.0);
        edge.rope = Some((angles([1, seq, 1, [16, head_dim / 2][random.below(2)]], angle), order));
        edge
    };
    WholeEdges {
        query: edge(seq_q, heads),
        key: edge(seq_k, kv_heads),
        joint_query: edge(joint, heads),
        joint_key: edge(joint, kv_heads),
    }
}

/// As if done beforehand, and by the same sums whoever does it.
pub fn edges_are_done_on_the_way<R: Rig, T: Half>()
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    let problem = Problem::new(1, 36, 4, 64).kv_heads(2);
    let joint = Problem::new(2, 24, 3, 64).kv_heads(3).joint(5, JointStrategy::Front);
    let uneven = [Setup::ulysses(2).uneven(), Setup::hybrid(2, 2).uneven()];
    for (problem, setups) in [(problem, plain(&[2])), (joint, uneven.to_vec())] {
        let inputs = problem.inputs::<T>(5);
        let edges = gpu_edges::<T>(&problem, 5);
        let exact = oracle(&edges.done(&inputs));
        let Some(one) = attend_with::<R, T>(Setup::NONE, &inputs, Some(&edges)) else { return };
        for setup in setups {
            let whole = attend_with::<R, T>(setup, &inputs, Some(&edges)).unwrap();
            let error = relative_error(&whole.rows(), &exact.rows());
            // Of the rounded queries and keys a few may be off by their last bit.
            assert!(error <= 1.5 * roundoff::<T>(), "{setup}, {problem:?}: relative error {error:e}");
            if setup.strategy == "ulysses" {
                assert_eq!(whole.bits(), one.bits(), "{setup}, {problem:?}");
            }
        }
    }
}

/// Documents and dense masks, alone and with all else that may stand beside them.
pub fn segments_and_dense_masks_cross_ranks<R: Rig, T: Half>()
where
    WithFlash: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    verify::<R, T>(Problem::new(2, 96, 4, 64).kv_heads(2).segments(), 1, &OTHERS);
    verify::<R, T>(Problem::new(1, 136, 4, 32).segments().causal(), 1, &plain(&[2, 4]));
    verify::<R, T>(Problem::new(2, 96, 4, 64).kv_heads(1).dense(true).key_lengths(), 1, &OTHERS);
    verify::<R, T>(Problem::new(1, 72, 4, 96).dense(false).segments().window(40, 9), 1, &plain(&[2]));
    // The dense mask of a rank is put together from that of joint tokens and its own positions.
    let joint = Problem::new(1, 72, 4, 64).joint(5, JointStrategy::Rear).dense(true);
    verify::<R, T>(
        joint,
        1,
        &[Setup::ulysses(2), Setup::ring(3), Setup::hybrid(2, 2), Setup::allgather_kv(3)],
    );
}
