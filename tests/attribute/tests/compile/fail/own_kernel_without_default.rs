use attn::prelude::*;
use attn::{AttentionCall, AttentionKernel, Device, Scope};

struct Mean {
    over: usize,
}

impl<D: Device, T: Element> AttentionKernel<D, T> for Mean {
    fn forward(&self, _: Scope<'_, D>, _: &mut AttentionCall<'_, T, D>) -> attn::Result<()> {
        let _ = self.over;
        Ok(())
    }
}

#[parallel_attention(strategy = "ulysses", backend = Mean)]
struct Attention;

fn main() {}
