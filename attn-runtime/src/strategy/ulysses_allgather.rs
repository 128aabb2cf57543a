//! Ulysses inside, all-gather outside.

use attn_plan::{MaskKinds, RingLayout, Sharding};

use crate::comm::{Communicator, Traffic};
use crate::device::Scope;
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel};
use crate::spec::AttentionSpec;
use crate::strategy::degrees::product;
use crate::strategy::gather::{Gather, GatherContext, GatherPlans};
use crate::strategy::grouped::Grouped;
use crate::strategy::reshard::{JointKeys, Reshard};
use crate::strategy::{AttentionRequest, ParallelAttentionStrategy};
use crate::tensor::{Element, TensorLayout};

const NAME: &str = "ulysses_allgather";

/// `ulysses` neighbours exchange sequence for heads; `allgather` groups of them gather the keys and values of these heads
/// before one kernel call. It asks no more of a kernel than that it computes.
///
/// With `U x A` ranks: query `[b, s/(UA), h, d]` becomes `[b, s/A, h/U, d]`, keys and values `[b, s, h_kv/U, d]`.
///
/// Rank `p` is number `p % ulysses` among its neighbours. In a strict split the Ulysses degree alone must divide the heads.
#[derive(Debug)]
pub struct UlyssesAllGatherParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    reshard: Reshard<C>,
    /// The ranks that gather, if they are not all ranks.
    gathering: Option<C>,
    plans: GatherPlans,
}

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for UlyssesAllGatherParallelAttention<C, SCATTER, GATHER>
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
        = Gather<'a, Grouped<'a, K>, C, T>
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> Result<Self> {
        let degrees = (("ulysses", spec.ulysses), ("allgather", spec.allgather));
        let (ulysses, outer) = product(NAME, degrees.0, degrees.1, group.size())?;
        let split = spec.split.unwrap_or_default();
        let sharding = Sharding { ulysses, outer, layout: RingLayout::Contiguous, split };
        let reshard = Reshard::open(NAME, group, sharding, JointKeys::Apart, spec)?;
        let gathering = reshard.open_outer()?;
        Ok(Self { reshard, gathering, plans: GatherPlans::new() })
    }

    fn communicator(&self) -> &C {
        self.reshard.group()
    }

    #[inline]
    fn sharding(&self) -> Sharding {
        self.reshard.sharding()
    }

    fn traffic(&self) -> Traffic {
        self.gathering.iter().fold(self.reshard.group().traffic(), |sum, group| sum + group.traffic())
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
        let group = self.gathering.as_ref().unwrap_or(self.reshard.group());
        Gather { kernel: Grouped::new(kernel, &context.reshard.plans.head_runs), group, context }
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
