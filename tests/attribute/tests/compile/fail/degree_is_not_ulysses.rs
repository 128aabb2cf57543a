use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", degree = 8, ulysses = 4)]
struct Attention;

fn main() {}
