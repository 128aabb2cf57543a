use attn::parallel_attention;

#[parallel_attention(strategy = "ring", mask = "lower_triangle")]
struct Attention;

fn main() {}
