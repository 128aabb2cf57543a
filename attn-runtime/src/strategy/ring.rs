//! Ring: queries stay, keys and values go round.

use core::cell::Cell;

use attn_plan::{MaskKinds, Sharding};

use crate::comm::Communicator;
use crate::device::Scope;
use crate::error::Result;
use crate::kernel::{AttentionCall, CarriesState};
use crate::pipeline::Work;
use crate::spec::AttentionSpec;
use crate::strategy::degrees::whole;
use crate::strategy::reshard::{JointKeys, Reshard, ReshardContext};
use crate::strategy::rotate::Rotate;
use crate::strategy::{AttentionRequest, ParallelAttentionStrategy};
use crate::tensor::{Element, TensorLayout};

const NAME: &str = "ring";

/// Every rank keeps its queries and meets every rank's keys and values in turn. Any number of heads will do.
///
/// Ring is no matter of before and after: it drives the kernel once per block, so it stands in the kernel's place, as the
/// adapter [`Rotate`]. Its layout says which positions a rank holds ([`RingLayout`](attn_plan::RingLayout)): under causal
/// masks zigzag and striped give all ranks the same to do.
///
/// With `P` ranks: query `[b, s/P, h, d]` stays; of keys and values a rank sees one rank's `[b, s/P, h_kv, d]` at a time.
#[derive(Debug)]
pub struct RingParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    reshard: Reshard<C>,
    work: Cell<Work>,
}

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for RingParallelAttention<C, SCATTER, GATHER>
where
    K: CarriesState<C::Device, T>,
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
    type Context<'a> = ReshardContext<'a, T, C::Device>;
    type Driven<'a>
        = Rotate<'a, &'a K, C, T>
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> Result<Self> {
        let outer = whole("ring", spec.ring, group.size())?;
        let (layout, split) = (spec.layout.unwrap_or_default(), spec.split.unwrap_or_default());
        let sharding = Sharding { ulysses: 1, outer, layout, split };
        let reshard = Reshard::open(NAME, group, sharding, JointKeys::Apart, spec)?;
        Ok(Self { reshard, work: Cell::default() })
    }

    fn communicator(&self) -> &C {
        self.reshard.group()
    }

    #[inline]
    fn sharding(&self) -> Sharding {
        self.reshard.sharding()
    }

    fn work(&self) -> Work {
        self.work.get()
    }

    fn pre_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> Result<(AttentionCall<'a, T, C::Device>, Self::Context<'a>)> {
        self.reshard.pre(scope, request)
    }

    #[inline]
    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, context: &'a Self::Context<'c>) -> Self::Driven<'a> {
        Rotate { kernel, group: self.reshard.group(), context, work: &self.work }
    }

    fn post_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: Self::Context<'a>,
    ) -> Result<()> {
        self.reshard.post(scope, call, context)
    }
}
