use attn::prelude::*;

#[parallel_attention(strategy = "ulysses", backend = "flash")]
struct Attention;

fn main() {}
