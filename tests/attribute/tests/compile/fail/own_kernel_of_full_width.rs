use attn::prelude::*;
use attn::{AttentionCall, AttentionKernel, Device, Scope, ThreadComm};

#[derive(Default)]
struct Mean;

impl<D: Device, T: Element> AttentionKernel<D, T> for Mean {
    fn forward(&self, _: Scope<'_, D>, _: &mut AttentionCall<'_, T, D>) -> attn::Result<()> {
        Ok(())
    }
}

#[parallel_attention(strategy = "ulysses_quantised", backend = Mean)]
struct Attention;

fn is_parallel<A: ParallelAttention<ThreadComm, f32>>() {}

fn main() {
    is_parallel::<Attention>();
}
