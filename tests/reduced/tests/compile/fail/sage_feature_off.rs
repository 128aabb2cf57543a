use attn::prelude::*;

#[parallel_attention(strategy = "ring", backend = "sage")]
struct Attention;

fn main() {}
