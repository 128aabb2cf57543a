//! A strategy of the user's own, by its path: the attribute adds the communicator and the axes. It has every key.

use attn::prelude::*;
use attn::{
    AttentionCall, AttentionKernel, AttentionPipeline, AttentionRequest, AttentionSpec, NoParallelAttention,
    ParallelAttentionStrategy, Scope, TensorLayout, ThreadComm,
};

mod my {
    pub struct Strategy<C, const SCATTER: usize, const GATHER: usize> {
        pub inner: attn::NoParallelAttention<C, SCATTER, GATHER>,
    }
}

/// What `none` does, under another name.
type Inner<C, const SCATTER: usize, const GATHER: usize> = NoParallelAttention<C, SCATTER, GATHER>;

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for my::Strategy<C, SCATTER, GATHER>
where
    K: AttentionKernel<C::Device, T>,
    C: Communicator,
    T: Element,
{
    const NAME: &'static str = "mine";
    const ENABLED: bool = true;
    const LAYOUT: TensorLayout = TensorLayout::of::<SCATTER, GATHER>();
    type Context<'a> = <Inner<C, SCATTER, GATHER> as ParallelAttentionStrategy<K, C, T>>::Context<'a>;
    type Driven<'a>
        = &'a K
    where
        Self: 'a,
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> attn::Result<Self> {
        let inner = <Inner<C, SCATTER, GATHER> as ParallelAttentionStrategy<K, C, T>>::open(group, spec)?;
        Ok(Self { inner })
    }

    fn communicator(&self) -> &C {
        ParallelAttentionStrategy::<K, C, T>::communicator(&self.inner)
    }

    fn pre_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> attn::Result<(AttentionCall<'a, T, C::Device>, Self::Context<'a>)> {
        ParallelAttentionStrategy::<K, C, T>::pre_attention(&mut self.inner, scope, request)
    }

    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, _: &'a Self::Context<'c>) -> &'a K {
        kernel
    }

    fn post_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: Self::Context<'a>,
    ) -> attn::Result<()> {
        ParallelAttentionStrategy::<K, C, T>::post_attention(&mut self.inner, scope, call, context)
    }
}

#[parallel_attention(
    strategy = my::Strategy,
    scatter = 1,
    gather = 2,
    heads = 8,
    degree = 3,
    ulysses = 5,
    ring = 7,
    allgather = 11,
    layout = "zigzag",
    split = "strict",
    use_sync = true,
    fuse_qkv = false
)]
struct Attention;

fn offered<A: ParallelAttention<ThreadComm, f32>>() -> (&'static [&'static str], TensorLayout) {
    (A::Pipeline::OFFERED, A::Pipeline::LAYOUT)
}

fn main() {
    assert_eq!(offered::<Attention>(), (&["mine"][..], TensorLayout::Bhsd));
}
