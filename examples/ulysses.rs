//! Four ranks exchange sequence for heads.
//!
//! `cargo run --release --example ulysses`

use attn::prelude::*;

#[parallel_attention(
    strategy = "ulysses",
    heads = 8,
    kv_heads = 4,
    head_dim = 64,
    mask = "causal",
    backend = "flash"
)]
struct SelfAttention;

const RANKS: usize = 4;
const SEQ: usize = 1024;

fn main() -> attn::Result<()> {
    let attention = SelfAttention;
    let traffic = World::threads(RANKS).run(|comm| {
        let rank = comm.rank();
        let mut session = Session::open(comm)?;
        // Each rank makes its own shard: positions rank * SEQ / RANKS onwards.
        let shard = |heads| {
            Tensor::<f32>::from_fn([1, SEQ / RANKS, heads, 64], |[_, s, h, d]| {
                let position = rank * SEQ / RANKS + s;
                ((position * 31 + h * 17 + d) % 97) as f32 / 97.0 - 0.5
            })
        };
        let (query, key, value) = (shard(8)?, shard(4)?, shard(4)?);
        let out = attention.attend(&mut session, &query, &key, &value, &AttentionMetadata::default())?;
        assert_eq!(out.shape(), query.shape());
        Ok::<_, attn::Error>(session.traffic())
    })?;
    println!("ulysses on {RANKS} ranks: each moved {} bytes", traffic[0].bytes);
    Ok(())
}
