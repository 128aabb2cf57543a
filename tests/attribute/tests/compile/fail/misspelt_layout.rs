use attn::parallel_attention;

#[parallel_attention(strategy = "ring", layout = "zig-zag")]
struct Attention;

fn main() {}
