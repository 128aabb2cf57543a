use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", heads = 0)]
struct Attention;

fn main() {}
