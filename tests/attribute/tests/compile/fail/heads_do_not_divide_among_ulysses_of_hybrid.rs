use attn::parallel_attention;

#[parallel_attention(strategy = "hybrid", heads = 6, ulysses = 4, ring = 2)]
struct Attention;

fn main() {}
