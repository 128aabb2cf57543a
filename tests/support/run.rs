//! Runs a problem on ranks: shards, attends, assembles.

use attn::prelude::*;
use attn::{AttentionPipeline, Error, KeyPlacement, Positions, Sharding, TensorLayout, ThreadComm, Traffic};

use super::{Inputs, Problem, Setup, Whole, WholeEdges};

/// Shards the inputs over threads, attends, and puts the parts together. Joint rows must be bit-equal on all ranks.
pub fn attend<A, T>(setup: Setup, inputs: &Inputs<T>) -> attn::Result<Whole<T>>
where
    A: ParallelAttention<ThreadComm, T>,
    T: Element,
{
    attend_on::<A, T>(World::threads(setup.ranks()).threads_per_rank(1), setup, inputs)
}

/// [`attend`] in a world of the caller's.
pub fn attend_on<A, T>(world: World, setup: Setup, inputs: &Inputs<T>) -> attn::Result<Whole<T>>
where
    A: ParallelAttention<ThreadComm, T>,
    T: Element,
{
    let shards = world.run(|comm| call(&mut open::<A, _, T>(comm, setup)?, inputs))?;
    Ok(assemble(&inputs.problem, setup.sharding, &shards))
}

/// [`attend`], with something done to queries and keys on their way.
pub fn attend_with<A, T>(setup: Setup, inputs: &Inputs<T>, edges: &WholeEdges<T>) -> attn::Result<Whole<T>>
where
    A: ParallelAttention<ThreadComm, T>,
    T: Element,
{
    let world = World::threads(setup.ranks()).threads_per_rank(1);
    let shards = world.run(|comm| call_with(&mut open::<A, _, T>(comm, setup)?, inputs, Some(edges)))?;
    Ok(assemble(&inputs.problem, setup.sharding, &shards))
}

/// Opens a rank's session.
pub fn open<A, C, T>(comm: C, setup: Setup) -> attn::Result<Session<A, C, T>>
where
    A: ParallelAttention<C, T>,
    C: Communicator,
    T: Element,
{
    let session = Session::<A, C, T>::open_with(comm, &setup.config())?;
    assert_eq!((session.strategy(), session.sharding()), (setup.strategy, setup.sharding));
    Ok(session)
}

/// One rank's part: its share of the output, in `[batch, joint + share, heads, head_dim]` order, and of the LSE. What
/// stood there before is garbage.
pub fn call<A, C, T>(
    session: &mut Session<A, C, T>,
    inputs: &Inputs<T>,
) -> attn::Result<(Tensor<T>, Vec<f32>)>
where
    A: ParallelAttention<C, T>,
    C: Communicator<Device = Cpu>,
    T: Element,
{
    call_with(session, inputs, None)
}

/// [`call`], with something done to queries and keys on their way.
pub fn call_with<A, C, T>(
    session: &mut Session<A, C, T>,
    inputs: &Inputs<T>,
    edges: Option<&WholeEdges<T>>,
) -> attn::Result<(Tensor<T>, Vec<f32>)>
where
    A: ParallelAttention<C, T>,
    C: Communicator<Device = Cpu>,
    T: Element,
{
    let Problem { batch, seq_q, seq_k, heads, head_dim, joint, keys, .. } = inputs.problem;
    let layout = A::Pipeline::LAYOUT;
    let (sharding, rank) = (session.sharding(), session.communicator().rank());
    let mine = |seq: usize, keys: KeyPlacement| match keys {
        KeyPlacement::Sharded => positions(sharding, seq, rank),
        KeyPlacement::Replicated => Ok(attn::Run::of(0..seq).into()),
    };
    let shard =
        |tensor: &Tensor<T>, keys: KeyPlacement| share(tensor, &mine(tensor.shape()[1], keys)?, layout);
    let query = shard(&inputs.query, KeyPlacement::Sharded)?;
    let (key, value) = (shard(&inputs.key, keys)?, shard(&inputs.value, keys)?);
    let joint_tensors = match &inputs.joint {
        Some([q, k, v]) => {
            Some([relaid(q.view(), layout)?, relaid(k.view(), layout)?, relaid(v.view(), layout)?])
        }
        None => None,
    };
    let mut metadata = inputs.metadata(joint_tensors.as_ref());
    if sharding.split == Split::Uneven {
        metadata = metadata.with_sequence(seq_q, seq_k);
    }
    let edges = match edges {
        Some(edges) => Some(edges.share(&mine(seq_q, KeyPlacement::Sharded)?, &mine(seq_k, keys)?)?),
        None => None,
    };
    let edges = edges.as_ref().map(WholeEdges::view);
    metadata.edges = edges.as_ref();
    let rows = joint + layout.permute(query.shape())[1];
    let mut out =
        Tensor::<T>::from_fn(layout.permute([batch, rows, heads, head_dim]), |_| T::from_f32(77.0))?;
    let mut lse = vec![77.0; batch * heads * rows];
    let outputs = Outputs::new(&mut out).with_lse(LseMut::new(&mut lse, [batch, heads, rows])?);
    session.attend_into(&query, &key, &value, &metadata, outputs)?;
    Ok((relaid(out.view().permuted(layout), TensorLayout::Bshd)?, lse))
}

/// Which positions are a rank's.
fn positions(sharding: Sharding, seq: usize, rank: usize) -> attn::Result<Positions> {
    let layout = sharding.sequence(seq).map_err(|error| Error::SeqSplit { tensor: "query", error })?;
    Ok(layout.positions(rank))
}

/// Some positions of `[batch, seq, heads, head_dim]`, in another layout.
pub fn share<T: Element>(
    tensor: &Tensor<T>,
    positions: &Positions,
    layout: TensorLayout,
) -> attn::Result<Tensor<T>> {
    let positions: Vec<usize> = positions.iter().collect();
    let [batch, _, heads, head_dim] = tensor.shape();
    let view = tensor.view();
    Tensor::from_fn(layout.permute([batch, positions.len(), heads, head_dim]), |index| {
        let [b, s, h, d] = layout.permute(index);
        view.at([b, positions[s], h, d])
    })
}

/// A dense copy of `[batch, seq, heads, head_dim]` in another layout.
pub fn relaid<T: Element>(view: View<'_, T>, layout: TensorLayout) -> attn::Result<Tensor<T>> {
    let view = view.permuted(layout);
    Tensor::from_fn(view.shape(), |index| view.at(index))
}

/// Puts the ranks' outputs into natural order. Joint rows must be bit-equal on all of them.
pub fn assemble<T: Element>(
    problem: &Problem,
    sharding: Sharding,
    shards: &[(Tensor<T>, Vec<f32>)],
) -> Whole<T> {
    let Problem { batch, seq_q, heads, head_dim, joint, order, .. } = *problem;
    let zeros = |rows: usize| vec![T::from_f32(0.0); batch * rows * heads * head_dim];
    let mut whole = Whole {
        out: zeros(seq_q),
        joint: zeros(joint),
        lse: vec![0.0; batch * heads * seq_q],
        joint_lse: vec![0.0; batch * heads * joint],
    };
    let layout = sharding.sequence(seq_q).unwrap();
    for (rank, (out, lse)) in shards.iter().enumerate() {
        let positions: Vec<usize> = layout.positions(rank).iter().collect();
        let rows = joint + positions.len();
        assert_eq!(out.shape(), [batch, rows, heads, head_dim]);
        let (joint_start, start) = order.starts(joint, positions.len());
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let from = |row: usize| ((b * rows + row) * heads + h) * head_dim;
            let row = |row: usize| &out.as_slice()[from(row)..][..head_dim];
            let row_lse = |row: usize| lse[(b * heads + h) * rows + row];
            for (index, &position) in positions.iter().enumerate() {
                let to = ((b * seq_q + position) * heads + h) * head_dim;
                whole.out[to..][..head_dim].copy_from_slice(row(start + index));
                whole.lse[(b * heads + h) * seq_q + position] = row_lse(start + index);
            }
            for index in 0..joint {
                let to = ((b * joint + index) * heads + h) * head_dim;
                let (place, place_lse) = (
                    &mut whole.joint[to..][..head_dim],
                    &mut whole.joint_lse[(b * heads + h) * joint + index],
                );
                let (found, found_lse) = (row(joint_start + index), row_lse(joint_start + index));
                if rank == 0 {
                    place.copy_from_slice(found);
                    *place_lse = found_lse;
                }
                let bits = |row: &[T]| row.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(place), bits(found), "joint row {index} of rank {rank} is not rank 0's");
                assert_eq!(
                    place_lse.to_bits(),
                    found_lse.to_bits(),
                    "the LSE of joint row {index} of rank {rank} is not rank 0's"
                );
            }
        }
    }
    whole
}

/// The whole result, and what each rank moved, on ranks that have a communicator each.
pub fn on_each<A, C>(
    comms: Vec<C>,
    setup: Setup,
    inputs: &Inputs<half::bf16>,
) -> (Whole<half::bf16>, Vec<Traffic>)
where
    A: ParallelAttention<C, half::bf16>,
    C: Communicator<Device = Cpu> + Send,
{
    let parts: Vec<_> = std::thread::scope(|scope| {
        let ranks: Vec<_> = comms
            .into_iter()
            .map(|comm| {
                scope.spawn(move || {
                    let mut session = open::<A, C, half::bf16>(comm, setup)?;
                    let opened = session.traffic();
                    Ok::<_, Error>((call(&mut session, inputs)?, session.traffic() - opened))
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect()
    });
    let (shards, traffic): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    (assemble(&inputs.problem, setup.sharding, &shards), traffic)
}
