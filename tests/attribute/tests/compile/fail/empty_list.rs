use attn::parallel_attention;

#[parallel_attention(strategy = [])]
struct Attention;

fn main() {}
