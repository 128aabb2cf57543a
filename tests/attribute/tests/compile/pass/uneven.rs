//! An uneven split takes heads that the ranks do not divide.

use attn::prelude::*;
use attn::ThreadComm;

#[parallel_attention(strategy = "ulysses", heads = 6, degree = 4, split = "uneven")]
struct Ulysses;

#[parallel_attention(strategy = "hybrid", heads = 7, kv_heads = 7, ulysses = 2, ring = 2, split = "uneven")]
struct Hybrid;

#[parallel_attention(strategy = ["none", "ulysses_allgather"], heads = 6, degree = 8, allgather = 2, split = "uneven")]
struct Listed;

fn split<A: ParallelAttention<ThreadComm, f32>>() -> Option<Split> {
    A::SPEC.split
}

fn main() {
    assert_eq!(split::<Ulysses>(), Some(Split::Uneven));
    assert_eq!(split::<Hybrid>(), Some(Split::Uneven));
    assert_eq!(split::<Listed>(), Some(Split::Uneven));
}
