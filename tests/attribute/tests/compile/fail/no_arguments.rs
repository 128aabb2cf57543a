use attn::parallel_attention;

#[parallel_attention()]
struct Attention;

fn main() {}
