use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", layout = "zigzag")]
struct Attention;

fn main() {}
