use attn::ThreadComm;
use attn::prelude::*;

#[parallel_attention(strategy = "ring")]
struct Attention;

fn is_parallel<A: ParallelAttention<ThreadComm, u8>>() {}

fn main() {}
