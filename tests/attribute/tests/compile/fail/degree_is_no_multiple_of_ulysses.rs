use attn::parallel_attention;

#[parallel_attention(strategy = "hybrid", degree = 6, ulysses = 4)]
struct Attention;

fn main() {}
