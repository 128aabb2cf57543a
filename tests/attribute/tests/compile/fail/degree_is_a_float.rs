use attn::parallel_attention;

#[parallel_attention(strategy = "ring", degree = 4.0)]
struct Attention;

fn main() {}
