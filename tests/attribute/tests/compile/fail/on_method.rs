use attn::parallel_attention;

struct Attention;

impl Attention {
    #[parallel_attention(strategy = "ulysses")]
    fn attend(&self) {}
}

fn main() {}
