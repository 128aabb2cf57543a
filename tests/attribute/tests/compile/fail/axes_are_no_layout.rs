use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", scatter = 1, gather = 3)]
struct Attention;

fn main() {}
