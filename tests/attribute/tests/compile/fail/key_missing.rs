use attn::parallel_attention;

#[parallel_attention("ulysses")]
struct Attention;

fn main() {}
