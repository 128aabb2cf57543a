use attn::parallel_attention;

#[parallel_attention(strategy = "hybrid", heads = 6, degree = 8, ring = 2)]
struct Attention;

fn main() {}
