//! Queries and keys are normalised and rotated on their way into the exchange: no pass of their own.
//!
//! `cargo run --release --example edges`

use attn::prelude::*;
use attn::{Edge, Edges, RmsNorm, Rope, RopePairs};

#[parallel_attention(strategy = "ulysses", heads = 8, head_dim = 64, mask = "causal", backend = "flash")]
struct SelfAttention;

/// Positions of the whole sequence, and how many pairs of channels are rotated.
const SEQ: usize = 256;
const PAIRS: usize = 32;

/// One rank's output: attention of all ranks' queries and keys, as they are or with an edge.
fn attend(comm: impl Communicator<Device = Cpu>, on_the_way: bool) -> attn::Result<Vec<f32>> {
    let rank = comm.rank();
    let mut session = Session::<SelfAttention, _, f32>::open(comm)?;
    // This rank's rows of the tensors, and of the table of angles: whatever the strategy and the layout.
    let positions: Vec<usize> = session.sharding().sequence(SEQ)?.positions(rank).iter().collect();
    let rows = positions.len();
    let tensor = |salt: usize| {
        Tensor::<f32>::from_fn([1, rows, 8, 64], |[_, s, h, d]| {
            ((positions[s] * 31 + h * 17 + d * salt) % 23) as f32 / 23.0 - 0.5
        })
    };
    let angle = |s: usize, i: usize| positions[s] as f32 / 10_000_f32.powf(i as f32 / PAIRS as f32);
    let cos = Tensor::from_fn([1, rows, 1, PAIRS], |[_, s, _, i]| angle(s, i).cos())?;
    let sin = Tensor::from_fn([1, rows, 1, PAIRS], |[_, s, _, i]| angle(s, i).sin())?;
    let weight = Tensor::from_fn([1, 1, 1, 64], |[.., d]| 1.0 + d as f32 / 64.0)?;
    let edge = Edge {
        norm: Some(RmsNorm { weight: Some(weight.view()), eps: 1e-6 }),
        rope: Some(Rope { cos: cos.view(), sin: sin.view(), pairs: RopePairs::Interleaved }),
    };
    let edges = Edges { query: edge, key: edge, ..Edges::default() };
    let metadata = AttentionMetadata::default();
    let metadata = if on_the_way { metadata.with_edges(&edges) } else { metadata };
    let out = session.attend(&tensor(3)?, &tensor(5)?, &tensor(7)?, &metadata)?;
    Ok(out.as_slice().to_vec())
}

fn main() -> attn::Result<()> {
    let [one, four] = [1, 4].map(|ranks| World::threads(ranks).run(|comm| attend(comm, true)));
    let (one, four) = (one?.concat(), four?.concat());
    assert_eq!(one, four, "each row is normalised and rotated by the same sums, whoever holds it");
    let plain = World::threads(1).run(|comm| attend(comm, false))?.concat();
    let moved = one.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("four ranks equal one to the bit; norm and rotation move results by up to {moved:.3}");
    Ok(())
}
