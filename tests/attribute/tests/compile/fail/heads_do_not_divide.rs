use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", heads = 24, degree = 5)]
struct Attention;

fn main() {}
