use attn::parallel_attention;

#[parallel_attention(strategy = "ring", backend = "flahs")]
struct Attention;

fn main() {}
