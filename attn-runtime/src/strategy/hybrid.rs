//! Hybrid: Ulysses inside, a ring outside.
//!
//! J. Fang, S. Zhao, "USP: A Unified Sequence Parallelism Approach for Long Context Generative AI", 2024,
//! arXiv:2405.07719.

use core::cell::Cell;

use attn_plan::{MaskKinds, Sharding};

use crate::comm::{Communicator, Traffic};
use crate::device::Scope;
use crate::error::Result;
use crate::kernel::{AttentionCall, CarriesState};
use crate::pipeline::Work;
use crate::spec::AttentionSpec;
use crate::strategy::degrees::product;
use crate::strategy::grouped::Grouped;
use crate::strategy::reshard::{JointKeys, Reshard, ReshardContext};
use crate::strategy::rotate::Rotate;
use crate::strategy::{AttentionRequest, ParallelAttentionStrategy};
use crate::tensor::{Element, TensorLayout};

const NAME: &str = "hybrid";

/// `ulysses` neighbours exchange sequence for heads; `ring` groups of them stand in a ring.
///
/// With `U x R` ranks: query `[b, s/(UR), h, d]` becomes `[b, s/R, h/U, d]`, keys and values likewise, and these go round.
///
/// Rank `p` is number `p % ulysses` among its neighbours and number `p / ulysses` in its ring, so neighbours should share
/// the fastest links. In a strict split the Ulysses degree alone must divide the heads.
#[derive(Debug)]
pub struct HybridParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    reshard: Reshard<C>,
    /// The ring, if it is not all ranks.
    ring: Option<C>,
    work: Cell<Work>,
}

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for HybridParallelAttention<C, SCATTER, GATHER>
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
        = Rotate<'a, Grouped<'a, K>, C, T>
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> Result<Self> {
        let degrees = (("ulysses", spec.ulysses), ("ring", spec.ring));
        let (ulysses, outer) = product(NAME, degrees.0, degrees.1, group.size())?;
        let (layout, split) = (spec.layout.unwrap_or_default(), spec.split.unwrap_or_default());
        let sharding = Sharding { ulysses, outer, layout, split };
        let reshard = Reshard::open(NAME, group, sharding, JointKeys::Apart, spec)?;
        let ring = reshard.open_outer()?;
        Ok(Self { reshard, ring, work: Cell::default() })
    }

    fn communicator(&self) -> &C {
        self.reshard.group()
    }

    #[inline]
    fn sharding(&self) -> Sharding {
        self.reshard.sharding()
    }

    fn traffic(&self) -> Traffic {
        self.ring.iter().fold(self.reshard.group().traffic(), |sum, ring| sum + ring.traffic())
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
        let group = self.ring.as_ref().unwrap_or(self.reshard.group());
        Rotate { kernel: Grouped::new(kernel, &context.plans.head_runs), group, context, work: &self.work }
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
