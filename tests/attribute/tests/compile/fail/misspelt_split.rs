use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", split = "unevn")]
struct Attention;

fn main() {}
