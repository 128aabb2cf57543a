use attn::parallel_attention;

#[parallel_attention(strategy = "my::Strategy")]
struct Attention;

fn main() {}
