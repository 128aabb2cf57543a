use attn::parallel_attention;

#[parallel_attention(strategy = "ring", mask = true)]
struct Attention;

fn main() {}
