//! Every key at once, and what each becomes; a key that is absent fixes nothing.

use attn::prelude::*;
use attn::{AttentionPipeline, AttentionSpec, Mask, TensorLayout, ThreadComm};

#[parallel_attention(
    strategy = ["hybrid", "ulysses_allgather"],
    scatter = 1,
    gather = 2,
    heads = 24,
    kv_heads = 8,
    head_dim = 128,
    degree = 8,
    ulysses = 2,
    ring = 4,
    allgather = 4,
    layout = "striped",
    split = "uneven",
    scale = 0.125,
    mask = "causal",
    use_sync = true,
    fuse_qkv = false,
    backend = "sdpa",
    crate = attn,
)]
struct Everything;

#[parallel_attention(strategy = "ring")]
struct Nothing;

#[parallel_attention(strategy = "none", gather = 0, scale = 2, mask = "none", heads = 1_024)]
struct Something;

#[parallel_attention(strategy = "allgather_kv", allgather = 3, degree = 3, split = "strict")]
struct Gathered;

fn spec<A: ParallelAttention<ThreadComm, f32>>() -> AttentionSpec {
    A::SPEC
}

fn main() {
    let counts = AttentionSpec::new().heads(24).kv_heads(8).head_dim(128);
    let degrees = counts.degree(8).ulysses(2).ring(4).allgather(4);
    let everything = degrees.layout(RingLayout::Striped).split(Split::Uneven).scale(0.125);
    let everything = everything.mask(Span::Causal.into()).use_sync(true).fuse_qkv(false);
    assert_eq!(spec::<Everything>(), everything);
    assert_eq!(spec::<Nothing>(), AttentionSpec::new());
    assert_eq!(spec::<Something>(), AttentionSpec::new().scale(2.0).mask(Mask::NONE).heads(1024));
    assert_eq!(spec::<Gathered>(), AttentionSpec::new().allgather(3).degree(3).split(Split::Strict));
    assert_eq!(<Something as ParallelAttention<ThreadComm, f32>>::Pipeline::LAYOUT, TensorLayout::Sbhd);
}
