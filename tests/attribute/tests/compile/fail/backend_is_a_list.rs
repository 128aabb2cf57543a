use attn::parallel_attention;

#[parallel_attention(strategy = "ring", backend = ["sdpa", "flash"])]
struct Attention;

fn main() {}
