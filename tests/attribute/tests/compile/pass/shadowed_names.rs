//! Generated code leans on no name that its surroundings could have taken.

#![no_implicit_prelude]

mod core {}
mod std {}

struct Result;
struct Pipeline;
struct Mask;
struct MaskKinds;
struct RingLayout;
struct Sharding;
struct Span;
struct Split;
struct Traffic;
struct Work;
struct Default;
trait AttentionPipeline {}

#[::attn::parallel_attention(strategy = ["none", "ulysses"], mask = "causal+dense", split = "uneven", scale = 0.5)]
struct Listed;

#[::attn::parallel_attention(strategy = "ring", heads = 8, layout = "zigzag", use_sync = true)]
struct Single;

fn is_parallel<A: ::attn::ParallelAttention<::attn::ThreadComm, f32>>() {}

fn main() {
    is_parallel::<Listed>();
    is_parallel::<Single>();
}
