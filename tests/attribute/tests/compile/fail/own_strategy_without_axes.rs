use attn::parallel_attention;

struct Mine<C> {
    _group: C,
}

#[parallel_attention(strategy = Mine)]
struct Attention;

fn main() {}
