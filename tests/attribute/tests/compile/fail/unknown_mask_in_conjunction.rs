use attn::parallel_attention;

#[parallel_attention(strategy = "ring", mask = "causal+segment")]
struct Attention;

fn main() {}
