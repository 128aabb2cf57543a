use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses_quantised", backend = "flash")]
struct Attention;

fn main() {}
