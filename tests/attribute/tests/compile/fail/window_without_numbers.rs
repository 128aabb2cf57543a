use attn::parallel_attention;

#[parallel_attention(strategy = "ring", mask = "window")]
struct Attention;

fn main() {}
