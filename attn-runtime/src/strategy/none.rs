//! No parallelism: one rank, the kernel on the caller's own tensors.

use attn_plan::{MaskKinds, Sharding};

use crate::comm::Communicator;
use crate::device::Scope;
use crate::error::{Error, Result};
use crate::kernel::{AttentionCall, AttentionKernel};
use crate::spec::AttentionSpec;
use crate::strategy::reshard::{DirectContext, JointKeys, Reshard};
use crate::strategy::{AttentionRequest, ParallelAttentionStrategy};
use crate::tensor::{Element, TensorLayout};

const NAME: &str = "none";

/// One rank. Nothing is moved; only joint tensors are concatenated with the others, since the kernel takes one sequence.
#[derive(Debug)]
pub struct NoParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    reshard: Reshard<C>,
}

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for NoParallelAttention<C, SCATTER, GATHER>
where
    K: AttentionKernel<C::Device, T>,
    C: Communicator,
    T: Element,
{
    const NAME: &'static str = NAME;
    const ENABLED: bool = false;
    const LAYOUT: TensorLayout = TensorLayout::of::<SCATTER, GATHER>();
    const MASKS: MaskKinds = K::MASKS;
    const JOINT: bool = true;
    const REPLICATED_KEYS: bool = true;
    const EDGES: bool = true;
    type Context<'a> = DirectContext<'a, T, C::Device>;
    type Driven<'a>
        = &'a K
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> Result<Self> {
        match group.size() {
            1 => Ok(Self { reshard: Reshard::open(NAME, group, Sharding::ONE, JointKeys::First, spec)? }),
            ranks => Err(Error::NotParallel { ranks }),
        }
    }

    fn communicator(&self) -> &C {
        self.reshard.group()
    }

    #[inline]
    fn sharding(&self) -> Sharding {
        Sharding::ONE
    }

    fn pre_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> Result<(AttentionCall<'a, T, C::Device>, Self::Context<'a>)> {
        self.reshard.pre_direct(scope, request)
    }

    #[inline]
    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, _: &'a Self::Context<'c>) -> &'a K {
        kernel
    }

    #[inline]
    fn post_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: Self::Context<'a>,
    ) -> Result<()> {
        self.reshard.post_direct(scope, call, context)
    }
}
