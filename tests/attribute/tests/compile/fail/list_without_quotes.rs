use attn::parallel_attention;

#[parallel_attention(strategy = [none, "ulysses"])]
struct Attention;

fn main() {}
