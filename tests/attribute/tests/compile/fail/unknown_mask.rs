use attn::parallel_attention;

#[parallel_attention(strategy = "ring", mask = "casual")]
struct Attention;

fn main() {}
