use attn::parallel_attention;

#[parallel_attention(strategy = "none", scale = 1e39)]
struct Attention;

fn main() {}
