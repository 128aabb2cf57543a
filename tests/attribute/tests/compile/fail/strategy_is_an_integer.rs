use attn::parallel_attention;

#[parallel_attention(strategy = 2)]
struct Attention;

fn main() {}
