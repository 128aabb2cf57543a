//! What the three examples do alike: make shards, attend, tell what was moved.

use attn::ThreadComm;
use attn::prelude::*;

/// Positions of the whole sequence.
const SEQ: usize = 1024;

/// Attends once on every rank: 8 query heads and 4 key heads of 64, f32.
pub(crate) fn attend_on<A>(attention: &A, ranks: usize) -> attn::Result<()>
where
    A: ParallelAttention<ThreadComm, f32> + Sync,
{
    let traffic = World::threads(ranks).run(|comm| {
        let rank = comm.rank();
        let mut session = Session::open(comm)?;
        // Each rank makes its own shard: positions `rank * SEQ / ranks` onwards.
        let shard = |heads| {
            Tensor::<f32>::from_fn([1, SEQ / ranks, heads, 64], |[_, s, h, d]| {
                let position = rank * SEQ / ranks + s;
                ((position * 31 + h * 17 + d) % 97) as f32 / 97.0 - 0.5
            })
        };
        let (query, key, value) = (shard(8)?, shard(4)?, shard(4)?);
        let out = attention.attend(&mut session, &query, &key, &value, &AttentionMetadata::default())?;
        assert_eq!(out.shape(), query.shape());
        println!("rank {rank}: {} of {SEQ} positions by `{}`", SEQ / ranks, session.strategy());
        Ok::<_, attn::Error>(session.traffic())
    })?;
    println!("each rank sent {} bytes to others", traffic.first().map_or(0, |traffic| traffic.sent));
    Ok(())
}
