use attn::parallel_attention;

#[parallel_attention(strategy = "ring", mask = "causal+window(512, 0)")]
struct Attention;

fn main() {}
