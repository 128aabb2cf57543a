//! Self-attention of a language model on four ranks, as two times two: neighbours exchange sequence for heads, and pairs
//! of them pass keys and values round. The mask is causal, and the layout zigzag, which shares its work out evenly; the
//! sequence is three documents, packed; queries and keys are turned by rotary angles. One rank checks the result.
//!
//! `cargo run --release --example hybrid`

use std::process::ExitCode;

use attn::prelude::*;
use attn::{SequenceLayout, ThreadComm};

const HEADS: usize = 8;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;

/// Lengths of the documents.
const DOCUMENTS: [usize; 3] = [400, 130, 494];
/// Positions of the whole sequence.
const SEQ: usize = 1024;

#[parallel_attention(
    strategy = "hybrid",
    ulysses = 2,
    ring = 2,
    layout = "zigzag",
    heads = 8,
    kv_heads = 4,
    head_dim = 64,
    mask = "causal+segments",
    backend = "flash"
)]
struct OnFourRanks;

#[parallel_attention(
    strategy = "none",
    heads = 8,
    kv_heads = 4,
    head_dim = 64,
    mask = "causal+segments",
    backend = "flash"
)]
struct OnOneRank;

fn main() -> ExitCode {
    match run() {
        Ok(error) if error < 1e-5 => {
            println!("{SEQ} positions of {} documents: relative error {error:.1e}", DOCUMENTS.len());
            ExitCode::SUCCESS
        }
        Ok(error) => {
            eprintln!("the result is wrong: relative error {error:.1e}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// How far the result of four ranks is from that of one, relative to the whole.
fn run() -> attn::Result<f64> {
    let text = Text::new();
    let found = attend(&OnFourRanks, 4, &text)?;
    let right = attend(&OnOneRank, 1, &text)?;
    let (mut difference, mut norm) = (0.0, 0.0);
    for (found, right) in found.iter().zip(&right) {
        difference += (f64::from(*found) - f64::from(*right)).powi(2);
        norm += f64::from(*right).powi(2);
    }
    Ok((difference / norm).sqrt())
}

/// What all ranks know of the sequence.
struct Text {
    /// The document of each position: queries attend keys of their own.
    documents: Vec<i32>,
    /// The rotary angles of each position, which are counted from the start of its document: one for each two channels.
    angles: Vec<Vec<f32>>,
}

impl Text {
    fn new() -> Self {
        let within = || DOCUMENTS.iter().flat_map(|length| 0..*length);
        let angle = |position: usize, pair: usize| {
            position as f32 / 10_000_f32.powf(2.0 * pair as f32 / HEAD_DIM as f32)
        };
        let documents = (0..).zip(DOCUMENTS).flat_map(|(id, length)| vec![id; length]).collect();
        let angles =
            within().map(|position| (0..HEAD_DIM / 2).map(|pair| angle(position, pair)).collect()).collect();
        Self { documents, angles }
    }
}

/// The output of the whole sequence, `[SEQ, HEADS, HEAD_DIM]`, computed by `ranks` ranks.
fn attend<A>(attention: &A, ranks: usize, text: &Text) -> attn::Result<Vec<f32>>
where
    A: ParallelAttention<ThreadComm, f32> + Sync,
{
    let shards = World::threads(ranks).run(|comm| {
        let rank = comm.rank();
        let mut session = Session::open(comm)?;
        // Who holds which positions: here, in the middle of the exchange, and in the kernel, all follow from this.
        let layout = session.sharding().sequence(SEQ)?;
        let query = rotated(shard(HEADS, 1, &layout, rank)?, text, &layout, rank);
        let key = rotated(shard(KV_HEADS, 2, &layout, rank)?, text, &layout, rank);
        let value = shard(KV_HEADS, 3, &layout, rank)?;
        // Masks speak of the whole sequence, in natural order, whatever the layout.
        let metadata = AttentionMetadata::default().with_segments(Segments::of(&text.documents));
        let out = attention.attend(&mut session, &query, &key, &value, &metadata)?;
        let (work, sent) = (session.work(), session.traffic().sent);
        if ranks > 1 {
            let (computed, skipped) = (work.computed, work.skipped);
            let positions: Vec<_> = layout.positions(rank).runs().map(|(_, run)| run.start..run.start + run.len).collect();
            println!("rank {rank}: positions {positions:?}, {computed} blocks and {skipped} skipped, {sent} bytes sent");
        }
        Ok::<_, attn::Error>((layout, out))
    })?;
    // Shards one after the other stand in the layout's order.
    let mut whole = vec![0.0; SEQ * HEADS * HEAD_DIM];
    let order = shards.first().map_or(Vec::new(), |(layout, _)| layout.order());
    let rows = shards.iter().flat_map(|(_, out)| out.as_slice().chunks(HEADS * HEAD_DIM));
    for (position, row) in order.into_iter().zip(rows) {
        whole[position * row.len()..(position + 1) * row.len()].copy_from_slice(row);
    }
    Ok(whole)
}

/// This rank's positions of some tensor of the model.
fn shard(heads: usize, salt: usize, layout: &SequenceLayout, rank: usize) -> attn::Result<Tensor<f32>> {
    let positions: Vec<usize> = layout.positions(rank).iter().collect();
    Tensor::from_fn([1, positions.len(), heads, HEAD_DIM], |[_, s, h, d]| {
        let mixed = (salt + 31 * positions[s] + 17 * h + 7 * d).wrapping_mul(2_654_435_761) >> 9;
        (mixed % 997) as f32 / 250.0 - 2.0
    })
}

/// Turns each two channels, of the first half of a head and of the second, by the angle of the rank's position.
fn rotated(mut shard: Tensor<f32>, text: &Text, layout: &SequenceLayout, rank: usize) -> Tensor<f32> {
    let [_, _, heads, head_dim] = shard.shape();
    let rows = shard.as_mut_slice().chunks_mut(heads * head_dim);
    for (position, row) in layout.positions(rank).iter().zip(rows) {
        for head in row.chunks_mut(head_dim) {
            let (first, second) = head.split_at_mut(head_dim / 2);
            for ((a, b), angle) in first.iter_mut().zip(second).zip(&text.angles[position]) {
                let (sin, cos) = angle.sin_cos();
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
    }
    shard
}
