use attn::parallel_attention;

#[parallel_attention(strategy = ["none", "ulysses"], heads = 6, degree = 4)]
struct Attention;

fn main() {}
