use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", use_sync = 1)]
struct Attention;

fn main() {}
