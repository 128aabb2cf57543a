use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses")]
enum Attention {
    Joint,
}

fn main() {}
