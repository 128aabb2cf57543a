//! No parallelism: one rank, the kernel on the caller's own tensors.

use crate::comm::Communicator;
use crate::device::Scope;
use crate::error::{Error, Result};
use crate::kernel::{AttentionCall, AttentionKernel};
use crate::spec::AttentionSpec;
use crate::strategy::joint::concatenate;
use crate::strategy::{AttentionRequest, ParallelAttentionContext, ParallelAttentionStrategy};
use crate::tensor::{Element, KeyValue, TensorLayout};

/// One rank. Nothing is moved; only joint tensors are concatenated, since the kernel takes one sequence.
#[derive(Debug)]
pub struct NoParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    group: C,
}

/// Nothing to remember: the kernel wrote the caller's output.
#[derive(Clone, Copy, Debug)]
pub struct NoParallelContext;

impl ParallelAttentionContext for NoParallelContext {
    fn name(&self) -> &'static str {
        "none"
    }
}

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for NoParallelAttention<C, SCATTER, GATHER>
where
    K: AttentionKernel<C::Device, T>,
    C: Communicator,
    T: Element,
{
    const NAME: &'static str = "none";
    const ENABLED: bool = false;
    const LAYOUT: TensorLayout = TensorLayout::of::<SCATTER, GATHER>();
    type Context<'a> = NoParallelContext;
    type Driven<'a>
        = &'a K
    where
        K: 'a;

    fn open(group: C, _: &AttentionSpec) -> Result<Self> {
        match group.size() {
            1 => Ok(Self { group }),
            ranks => Err(Error::NotParallel { ranks }),
        }
    }

    fn communicator(&self) -> &C {
        &self.group
    }

    fn pre_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> Result<(AttentionCall<'a, T, C::Device>, NoParallelContext)> {
        let (mut query, mut kv) = (request.query, request.kv);
        if let Some(joint) = request.joint {
            let join = |joint_part, local| concatenate(scope, joint.order, joint_part, local);
            query = join(joint.query, query)?;
            kv = KeyValue { key: join(joint.kv.key, kv.key)?, value: join(joint.kv.value, kv.value)? };
        }
        let band = request.band(1);
        let AttentionRequest { scale, out, lse, .. } = request;
        Ok((AttentionCall { query, kv, band, scale, out, lse }, NoParallelContext))
    }

    #[inline]
    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, _: &'a NoParallelContext) -> &'a K {
        kernel
    }

    #[inline]
    fn post_attention<'a>(
        &mut self,
        _: Scope<'a, C::Device>,
        _: AttentionCall<'a, T, C::Device>,
        _: NoParallelContext,
    ) -> Result<()> {
        Ok(())
    }
}
