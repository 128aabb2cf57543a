use attn::parallel_attention;

#[parallel_attention(strategy = "ring", backend = sdpa)]
struct Attention;

fn main() {}
