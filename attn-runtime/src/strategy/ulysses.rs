//! Ulysses: exchange sequence for heads before the kernel, and back after it.

use attn_plan::{MaskKinds, RingLayout, Sharding};

use crate::comm::Communicator;
use crate::device::Scope;
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel};
use crate::spec::AttentionSpec;
use crate::strategy::degrees::whole;
use crate::strategy::grouped::Grouped;
use crate::strategy::reshard::{DirectContext, JointKeys, Reshard};
use crate::strategy::{AttentionRequest, ParallelAttentionStrategy};
use crate::tensor::{Element, TensorLayout};

const NAME: &str = "ulysses";

/// Every rank holds a slice of the sequence outside the kernel, and computes a slice of the heads inside it.
///
/// With `P` ranks: query `[b, s/P, h, d]` becomes `[b, s, h/P, d]`, keys and values likewise; the output goes the
/// other way. In a strict split `P` must divide the query heads, and divide the key and value heads or be a multiple of
/// them (then each of those goes to the `P / kv_heads` ranks that need it, and to no other).
#[derive(Debug)]
pub struct UlyssesParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    reshard: Reshard<C>,
}

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for UlyssesParallelAttention<C, SCATTER, GATHER>
where
    K: AttentionKernel<C::Device, T>,
    C: Communicator,
    T: Element,
{
    const NAME: &'static str = NAME;
    const ENABLED: bool = true;
    const LAYOUT: TensorLayout = TensorLayout::of::<SCATTER, GATHER>();
    const MASKS: MaskKinds = K::MASKS;
    const JOINT: bool = true;
    const REPLICATED_KEYS: bool = true;
    const EDGES: bool = true;
    type Context<'a> = DirectContext<'a, T, C::Device>;
    type Driven<'a>
        = Grouped<'a, K>
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> Result<Self> {
        let ulysses = whole("ulysses", spec.ulysses, group.size())?;
        let split = spec.split.unwrap_or_default();
        let sharding = Sharding { ulysses, outer: 1, layout: RingLayout::Contiguous, split };
        Ok(Self { reshard: Reshard::open(NAME, group, sharding, JointKeys::First, spec)? })
    }

    fn communicator(&self) -> &C {
        self.reshard.group()
    }

    #[inline]
    fn sharding(&self) -> Sharding {
        self.reshard.sharding()
    }

    fn pre_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> Result<(AttentionCall<'a, T, C::Device>, Self::Context<'a>)> {
        self.reshard.pre_direct(scope, request)
    }

    #[inline]
    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, context: &'a Self::Context<'c>) -> Grouped<'a, K> {
        Grouped::new(kernel, context.head_runs())
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
