use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", heads = 12, kv_heads = 4, degree = 3)]
struct Attention;

fn main() {}
