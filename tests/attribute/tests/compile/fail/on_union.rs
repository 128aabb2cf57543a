use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses")]
union Attention {
    bits: u32,
}

fn main() {}
