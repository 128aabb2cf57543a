use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", scatter = 3, gather = 1)]
struct Attention;

fn main() {}
