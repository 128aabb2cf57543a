use attn::parallel_attention;

#[parallel_attention(strategy = "ulyses")]
struct Attention;

fn main() {}
