use attn::parallel_attention;

#[parallel_attention(strategy = "ring", crate = elsewhere)]
struct Attention;

fn main() {}
