use attn::parallel_attention;

#[parallel_attention(stratgy = "ring")]
struct Attention;

fn main() {}
