use attn::parallel_attention;

#[parallel_attention(strategy "ring")]
struct Attention;

fn main() {}
