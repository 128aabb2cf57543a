use attn::prelude::*;
use attn::{AttentionCall, AttentionKernel, AttentionSpec, Device, MaskKinds, Scope, ThreadComm};

#[derive(Default)]
struct Mean;

impl<D: Device, T: Element> AttentionKernel<D, T> for Mean {
    const MASKS: MaskKinds = MaskKinds::SPAN;

    fn forward(&self, _: Scope<'_, D>, _: &mut AttentionCall<'_, T, D>) -> attn::Result<()> {
        Ok(())
    }
}

#[parallel_attention(strategy = "ulysses", backend = Mean, mask = "causal+segments")]
struct Attention;

const _: AttentionSpec = <Attention as ParallelAttention<ThreadComm, f32>>::SPEC;

fn main() {}
