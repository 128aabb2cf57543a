//! The backend whose feature is on can be named.

use attn::ThreadComm;
use attn::prelude::*;

#[parallel_attention(strategy = "ring", backend = "sdpa")]
struct Attention;

fn run<C: Communicator, T: Element>()
where
    Attention: ParallelAttention<C, T>,
{
}

fn main() {
    run::<ThreadComm, f32>();
}
