use attn::parallel_attention;

#[parallel_attention(strategy = ulysses)]
struct Attention;

fn main() {}
