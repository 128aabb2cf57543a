use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses")]
fn attention() {}

fn main() {}
