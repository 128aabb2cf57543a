//! Ulysses that sends queries, keys and values in 8 bits.

use core::marker::PhantomData;
use std::sync::Arc;

use attn_plan::{MaskKinds, RingLayout, Sharding};

use crate::comm::Communicator;
use crate::device::Scope;
use crate::error::Result;
use crate::kernel::{AttentionCall, QuantisedAttention};
use crate::spec::AttentionSpec;
use crate::strategy::degrees::whole;
use crate::strategy::home::PlanCache;
use crate::strategy::quantise::{Plans, QuantiseFirst, QuantisedContext};
use crate::strategy::reshard::{JointKeys, Reshard};
use crate::strategy::{AttentionRequest, ParallelAttentionStrategy};
use crate::tensor::{Element, TensorLayout};

const NAME: &str = "ulysses_quantised";

/// [`Ulysses`](crate::UlyssesParallelAttention) for a kernel that computes in 8 bits: what it would round after the exchange is
/// rounded before, and half as many bytes go on their way in. Outputs come back as they are.
///
/// The mean key, the values' scales and blocks of keys are those of the whole sequence, so that each rank attends with what
/// the kernel would have made of tensors in full width: for that ranks tell each other, before, `8 * head_dim` bytes for each
/// key head and, where blocks of keys lie on two shards, a few bytes more. The first rank rounds and sends the joint tokens.
///
/// Tensors go in one exchange: there is no `fuse_qkv`. No rank may attend with parts of several groups of grouped-query
/// attention.
#[derive(Debug)]
pub struct UlyssesQuantisedParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    reshard: Reshard<C>,
    plans: PlanCache<Plans>,
}

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for UlyssesQuantisedParallelAttention<C, SCATTER, GATHER>
where
    K: QuantisedAttention<C::Device, T>,
    C: Communicator,
    T: Element,
{
    const NAME: &'static str = NAME;
    const ENABLED: bool = true;
    const LAYOUT: TensorLayout = TensorLayout::of::<SCATTER, GATHER>();
    const MASKS: MaskKinds = K::MASKS;
    const JOINT: bool = true;
    type Context<'a> = QuantisedContext<'a, T, C::Device>;
    type Driven<'a>
        = QuantiseFirst<'a, K, C, T>
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> Result<Self> {
        let ulysses = whole("ulysses", spec.ulysses, group.size())?;
        let split = spec.split.unwrap_or_default();
        let sharding = Sharding { ulysses, outer: 1, layout: RingLayout::Contiguous, split };
        let reshard = Reshard::open(NAME, group, sharding, JointKeys::First, spec)?;
        Ok(Self { reshard, plans: PlanCache::new() })
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
        if self.reshard.sharding().ulysses == 1 {
            let (call, back) = self.reshard.pre_direct(scope, request)?;
            return Ok((call, QuantisedContext { back, exchanged: None }));
        }
        let (call, signature, back) = self.reshard.pre_outside(scope, request)?;
        let rank = self.reshard.group().rank();
        let plans =
            self.plans.get(&signature, || Plans::new(&signature, rank, [K::BLOCK_KEYS, K::KEY_SCALES]))?;
        Ok((call, QuantisedContext { back, exchanged: Some((signature, Arc::clone(&plans))) }))
    }

    #[inline]
    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, context: &'a Self::Context<'c>) -> Self::Driven<'a> {
        QuantiseFirst {
            kernel,
            reshard: &self.reshard,
            context: context.exchanged.as_ref(),
            elements: PhantomData,
        }
    }

    fn post_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: Self::Context<'a>,
    ) -> Result<()> {
        self.reshard.post_direct(scope, call, context.back)
    }
}
