use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses" heads = 8)]
struct Attention;

fn main() {}
