//! Four ranks pass keys and values round.
//!
//! `cargo run --release --example ring`

mod support;

use attn::prelude::*;

#[parallel_attention(
    strategy = "ring",
    heads = 8,
    kv_heads = 4,
    head_dim = 64,
    mask = "causal",
    backend = "flash"
)]
struct SelfAttention;

fn main() -> attn::Result<()> {
    support::attend_on(&SelfAttention, 4)
}
