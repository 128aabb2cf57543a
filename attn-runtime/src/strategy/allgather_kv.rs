//! All-gather: queries stay, every rank gets the keys and values that its queries need.

use attn_plan::{MaskKinds, RingLayout, Sharding};

use crate::comm::Communicator;
use crate::device::Scope;
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel};
use crate::spec::AttentionSpec;
use crate::strategy::degrees::whole;
use crate::strategy::gather::{Gather, GatherContext, GatherPlans};
use crate::strategy::reshard::{JointKeys, Reshard};
use crate::strategy::{AttentionRequest, ParallelAttentionStrategy};
use crate::tensor::{Element, TensorLayout};

const NAME: &str = "allgather_kv";

/// Every rank keeps its queries, and gathers all ranks' keys and values before one kernel call. Any number of heads will
/// do, and any kernel.
///
/// With `P` ranks: query `[b, s/P, h, d]` stays; keys and values `[b, s/P, h_kv, d]` become `[b, s, h_kv, d]`.
/// Under causal masks and windows a rank is sent no more than its queries may attend.
#[derive(Debug)]
pub struct AllGatherKvParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    reshard: Reshard<C>,
    plans: GatherPlans,
}

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for AllGatherKvParallelAttention<C, SCATTER, GATHER>
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
    type Context<'a> = GatherContext<'a, T, C::Device>;
    type Driven<'a>
        = Gather<'a, &'a K, C, T>
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> Result<Self> {
        let outer = whole("allgather", spec.allgather, group.size())?;
        let split = spec.split.unwrap_or_default();
        let sharding = Sharding { ulysses: 1, outer, layout: RingLayout::Contiguous, split };
        let reshard = Reshard::open(NAME, group, sharding, JointKeys::Apart, spec)?;
        Ok(Self { reshard, plans: GatherPlans::new() })
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
        let (call, context) = self.reshard.pre(scope, request)?;
        let context = self.plans.prepare(context, &call.kv)?;
        Ok((call, context))
    }

    #[inline]
    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, context: &'a Self::Context<'c>) -> Self::Driven<'a> {
        Gather { kernel, group: self.reshard.group(), context }
    }

    fn post_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: Self::Context<'a>,
    ) -> Result<()> {
        self.reshard.post(scope, call, context.reshard)
    }
}
