use attn::parallel_attention;

#[parallel_attention(strategy = ["none"], use_sync = true)]
struct Attention;

fn main() {}
