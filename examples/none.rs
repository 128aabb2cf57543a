//! One rank: the kernel alone.
//!
//! `cargo run --release --example none`

mod support;

use attn::prelude::*;

#[parallel_attention(
    strategy = "none",
    heads = 8,
    kv_heads = 4,
    head_dim = 64,
    mask = "causal",
    backend = "flash"
)]
struct SelfAttention;

fn main() -> attn::Result<()> {
    support::attend_on(&SelfAttention, 1)
}
