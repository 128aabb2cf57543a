use attn::prelude::*;

#[parallel_attention(strategy = "ulysses")]
struct Attention;

fn main() {}
