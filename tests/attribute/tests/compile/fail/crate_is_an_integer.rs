use attn::parallel_attention;

#[parallel_attention(strategy = "ring", crate = 1)]
struct Attention;

fn main() {}
