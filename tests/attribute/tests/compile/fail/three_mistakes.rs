use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses", head = 24, degree = 0, mask = "causl")]
struct Attention;

fn main() {}
