use attn::parallel_attention;

#[parallel_attention(strategy = my::Strategy<C>)]
struct Attention;

fn main() {}
