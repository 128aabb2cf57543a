use attn::parallel_attention;

#[parallel_attention(strategy = "ring", fuse_qkv = false)]
struct Attention;

fn main() {}
