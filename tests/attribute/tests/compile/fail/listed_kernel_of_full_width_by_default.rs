use attn::parallel_attention;

#[parallel_attention(strategy = ["none", "ulysses_quantised"])]
struct Attention;

fn main() {}
