use attn::parallel_attention;

#[parallel_attention(strategy = "ring", heads = 24, kv_heads = 5)]
struct Attention;

fn main() {}
