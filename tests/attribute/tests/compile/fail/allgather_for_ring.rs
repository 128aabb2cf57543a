use attn::parallel_attention;

#[parallel_attention(strategy = "ring", allgather = 2)]
struct Attention;

fn main() {}
