use attn::parallel_attention;

#[parallel_attention(strategy = "megatron")]
struct Attention;

fn main() {}
