use attn::parallel_attention;

#[parallel_attention(strategy = "ulysses")]
trait Attention {}

fn main() {}
