use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", scatter = "1", gather = 2)]
struct Attention;

fn main() {}
