use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", heads = HEADS)]
struct Attention;

const HEADS: usize = 24;

fn main() {}
