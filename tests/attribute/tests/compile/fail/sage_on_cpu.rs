use attn::ThreadComm;
use attn::prelude::*;

#[parallel_attention(strategy = "ulysses", backend = "sage")]
struct Attention;

fn is_parallel<A: ParallelAttention<ThreadComm, f32>>() {}

fn main() {
    is_parallel::<Attention>();
}
