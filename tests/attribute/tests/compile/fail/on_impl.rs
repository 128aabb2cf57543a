use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses")]
impl Attention {}

struct Attention;

fn main() {}
