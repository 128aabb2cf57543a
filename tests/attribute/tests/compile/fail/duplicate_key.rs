use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", heads = 24, heads = 8)]
struct Attention;

fn main() {}
