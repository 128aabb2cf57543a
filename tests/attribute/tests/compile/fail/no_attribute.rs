use attn::ThreadComm;
use attn::prelude::*;

struct Attention;

fn is_parallel<A: ParallelAttention<ThreadComm, f32>>() {}

fn main() {
    is_parallel::<Attention>();
}
