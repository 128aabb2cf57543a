use attn::parallel_attention;

#[parallel_attention(strategy = "hybrid", ulysses = 2, ring = 3, degree = 8)]
struct Attention;

fn main() {}
