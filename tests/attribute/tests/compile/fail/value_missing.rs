use attn::parallel_attention;

#[parallel_attention(strategy = "ring", heads =)]
struct Attention;

fn main() {}
