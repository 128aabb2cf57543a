use attn::parallel_attention;

#[parallel_attention(strategy = "none", degree = 4)]
struct Attention;

fn main() {}
