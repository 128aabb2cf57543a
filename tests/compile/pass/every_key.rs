//! Every key at once, and what each becomes; a key that is absent fixes nothing.

use attn::prelude::*;
use attn::{AttentionPipeline, AttentionSpec, TensorLayout, ThreadComm};

#[parallel_attention(
    strategy = "ulysses",
    scatter = 1,
    gather = 2,
    use_sync = true,
    heads = 24,
    kv_heads = 8,
    head_dim = 128,
    degree = 4,
    scale = 0.125,
    mask = "causal",
    backend = "sdpa",
    crate = attn,
)]
struct Everything;

#[parallel_attention(strategy = "ring")]
struct Nothing;

#[parallel_attention(strategy = "none", gather = 0, scale = 2, mask = "none", heads = 1_024)]
struct Something;

fn spec<A: ParallelAttention<ThreadComm, f32>>() -> AttentionSpec {
    A::SPEC
}

fn main() {
    let everything = AttentionSpec::new().heads(24).kv_heads(8).head_dim(128).degree(4).scale(0.125);
    assert_eq!(spec::<Everything>(), everything.mask(Mask::Causal).use_sync(true));
    assert_eq!(spec::<Nothing>(), AttentionSpec::new());
    assert_eq!(spec::<Something>(), AttentionSpec::new().scale(2.0).mask(Mask::None).heads(1024));
    assert_eq!(<Something as ParallelAttention<ThreadComm, f32>>::Pipeline::LAYOUT, TensorLayout::Sbhd);
}
