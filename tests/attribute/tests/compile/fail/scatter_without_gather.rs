use attn::parallel_attention;

#[parallel_attention(strategy = "ring", scatter = 1)]
struct Attention;

fn main() {}
