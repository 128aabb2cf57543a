//! A kernel of the user's own, by its path.

use attn::prelude::*;
use attn::{AttentionCall, AttentionKernel, Device, Scope, ThreadComm};

mod kernels {
    #[derive(Default)]
    pub struct Mean<const N: usize>;
}

impl<D: Device, T: Element, const N: usize> AttentionKernel<D, T> for kernels::Mean<N> {
    fn forward(&self, _: Scope<'_, D>, _: &mut AttentionCall<'_, T, D>) -> attn::Result<()> {
        Ok(())
    }
}

#[parallel_attention(strategy = "ulysses", backend = kernels::Mean<3>)]
struct Fixed;

#[parallel_attention(strategy = ["none", "ulysses"], backend = crate::kernels::Mean::<N>)]
struct Generic<const N: usize>;

fn is_parallel<A: ParallelAttention<ThreadComm, f32>>() {}

fn main() {
    is_parallel::<Fixed>();
    is_parallel::<Generic<2>>();
}
