use attn::ThreadComm;
use attn::prelude::*;

struct Mine<C, const SCATTER: usize, const GATHER: usize> {
    _group: C,
}

#[parallel_attention(strategy = Mine)]
struct Attention;

fn is_parallel<A: ParallelAttention<ThreadComm, f32>>() {}

fn main() {
    is_parallel::<Attention>();
}
