use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", dropout = 0.1)]
struct Attention;

fn main() {}
