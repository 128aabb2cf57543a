use attn::parallel_attention;

#[parallel_attention(strategy = "none", scale = -0.125)]
struct Attention;

fn main() {}
