use attn::parallel_attention;

#[parallel_attention(heads = 8)]
struct Attention;

fn main() {}
