use attn::parallel_attention;

#[parallel_attention(strategy = ["none", "ulysses", "none"])]
struct Attention;

fn main() {}
