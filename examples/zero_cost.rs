//! The same call, generated and written by hand: what `scripts/zero-cost` counts the instructions of.
//!
//! `zero_cost MODE CALLS`, where MODE is `direct` (the kernel), `none` (the pipeline that the attribute generates for
//! strategy none), `ulysses-by-hand` (checks and three stages written out) or `ulysses` (generated).

use attn::device::Arena;
use attn::prelude::*;
use attn::{
    AttentionCall, AttentionKernel, AttentionMask, AttentionRequest, AttentionSpec, BlockMask, Error, Flash,
    KeyPlacement, KeyValue, ParallelAttentionStrategy, Sequence, ThreadComm, UlyssesParallelAttention,
};

#[parallel_attention(strategy = "none", backend = "flash")]
struct Generated;

#[parallel_attention(strategy = "ulysses", backend = "flash")]
struct GeneratedUlysses;

/// Batch, sequence, heads, head_dim.
const SHAPE: [usize; 4] = [1, 96, 2, 32];

fn main() -> attn::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let calls: usize = arguments.next().and_then(|calls| calls.parse().ok()).unwrap_or(1);
    let x = Tensor::<f32>::from_fn(SHAPE, |[_, s, h, d]| ((s * 7 + h * 3 + d) % 13) as f32 / 13.0)?;
    let mut out = Tensor::<f32>::from_fn(SHAPE, |_| 0.0)?;
    let comm = World::threads(1).threads_per_rank(1).communicators()?.remove(0);
    match mode.as_str() {
        "direct" => direct(&comm, &x, &mut out, calls)?,
        "none" => generated::<Generated>(comm, &x, &mut out, calls)?,
        "ulysses" => generated::<GeneratedUlysses>(comm, &x, &mut out, calls)?,
        "ulysses-by-hand" => by_hand(comm, &x, &mut out, calls)?,
        other => return Err(Error::Configuration(format!("unknown mode `{other}`"))),
    }
    println!("{:?}", out.as_slice()[17]);
    Ok(())
}

fn generated<A>(comm: ThreadComm, x: &Tensor<f32>, out: &mut Tensor<f32>, calls: usize) -> attn::Result<()>
where
    A: ParallelAttention<ThreadComm, f32>,
{
    let mut session = Session::<A, _, f32>::open(comm)?;
    for _ in 0..calls {
        session.attend_into(x, x, x, &AttentionMetadata::default(), &mut *out)?;
    }
    Ok(())
}

fn direct(comm: &ThreadComm, x: &Tensor<f32>, out: &mut Tensor<f32>, calls: usize) -> attn::Result<()> {
    let queue = comm.queue()?;
    let mut arena = Arena::<Cpu>::default();
    for _ in 0..calls {
        let mut call = AttentionCall {
            query: x.view(),
            kv: KeyValue { key: x.view(), value: x.view() },
            mask: BlockMask::FULL,
            scale: 1.0 / (SHAPE[3] as f32).sqrt(),
            out: out.view_mut(),
            lse: None,
        };
        Flash.forward(arena.open(&queue)?, &mut call)?;
    }
    Ok(())
}

/// The checks of a session and the three stages of its pipeline, as one would write them without the attribute.
fn by_hand(comm: ThreadComm, x: &Tensor<f32>, out: &mut Tensor<f32>, calls: usize) -> attn::Result<()> {
    type Strategy = UlyssesParallelAttention<ThreadComm, 2, 1>;
    let queue = comm.queue()?;
    let mut arena = Arena::<Cpu>::default();
    let mut strategy =
        <Strategy as ParallelAttentionStrategy<Flash, ThreadComm, f32>>::open(comm, &AttentionSpec::new())?;
    let kernel = Flash;
    for call in 1..=calls {
        let (query, key, value, out) = (x.view(), x.view(), x.view(), out.view_mut());
        let [batch, seq, heads, head_dim] = query.shape();
        let [_, keys, kv_heads, _] = key.shape();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let wrong = query.shape().contains(&0)
            || key.shape() != [batch, keys, kv_heads, head_dim]
            || key.shape().contains(&0)
            || value.shape() != key.shape()
            || !heads.is_multiple_of(kv_heads)
            || !scale.is_finite()
            || !fits(query.shape())
            || !fits(key.shape())
            || out.shape() != query.shape();
        if wrong {
            return Err(Error::Configuration(String::from("shapes disagree")));
        }
        let request = AttentionRequest {
            call: call as u64,
            query,
            kv: KeyValue { key, value },
            keys: KeyPlacement::Sharded,
            sequence: Sequence { query: seq, key: keys },
            joint: None,
            mask: AttentionMask::default(),
            edges: None,
            scale,
            out,
            lse: None,
        };
        let scope = arena.open(&queue)?;
        let (mut call, context) = ParallelAttentionStrategy::<Flash, ThreadComm, f32>::pre_attention(
            &mut strategy,
            scope,
            request,
        )?;
        ParallelAttentionStrategy::<Flash, ThreadComm, f32>::kernel(&strategy, &kernel, &context)
            .forward(scope, &mut call)?;
        ParallelAttentionStrategy::<Flash, ThreadComm, f32>::post_attention(
            &mut strategy,
            scope,
            call,
            context,
        )?;
    }
    Ok(())
}

/// Whether a tensor of this shape could be addressed. (A view may repeat elements, and so be longer than any memory.)
fn fits(shape: [usize; 4]) -> bool {
    let elements = shape.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent));
    let bytes = elements.and_then(|elements| elements.checked_mul(size_of::<f32>()));
    bytes.is_some_and(|bytes| bytes <= isize::MAX as usize)
}
