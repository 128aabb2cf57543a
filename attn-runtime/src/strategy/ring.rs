//! Ring: queries stay, keys and values go round.
//!
//! H. Liu, M. Zaharia, P. Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023,
//! arXiv:2310.01889, section 3. Ring is no matter of before and after: it drives the kernel once per block, so it
//! stands in the kernel's place, as the adapter [`Rotate`]. Partial results are carried in fp32, not merged.

use std::sync::Arc;

use crate::comm::{Communicator, Signature};
use crate::device::Scope;
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel, Band, CarriesState, Cover};
use crate::sequence::share;
use crate::spec::AttentionSpec;
use crate::strategy::home::{Home, HomePlans, PlanCache, settle};
use crate::strategy::joint::concatenate;
use crate::strategy::{AttentionRequest, ParallelAttentionContext, ParallelAttentionStrategy};
use crate::tensor::{Element, KeyValue, TensorLayout, ViewMut};

const NAME: &str = "ring";

/// Every rank keeps its queries and meets every rank's keys and values in turn. Any number of heads will do.
///
/// Joint keys and values are attended once, besides the blocks. Joint queries are shared out: each rank computes some
/// of their rows, and the rows are gathered afterwards, so that each is computed once.
#[derive(Debug)]
pub struct RingParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    group: C,
    use_sync: bool,
    /// How joint rows are gathered.
    plans: PlanCache<HomePlans>,
}

/// One call's way round the ring, and back.
pub struct RingContext<'a, T, D> {
    /// What ranks compare when they rotate.
    signature: Signature,
    /// Keys that every query attends, besides the blocks.
    joint: Option<KeyValue<'a, T, D>>,
    /// The first of this rank's positions in the whole sequence.
    first_query: usize,
    /// Absent without joint tokens: then the kernel wrote the caller's outputs itself.
    back: Option<(Home<'a, T, D>, Arc<HomePlans>)>,
}

impl<T, D> ParallelAttentionContext for RingContext<'_, T, D> {
    fn name(&self) -> &'static str {
        NAME
    }
}

impl<T, D> core::fmt::Debug for RingContext<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RingContext").field("joint", &self.joint.is_some()).finish_non_exhaustive()
    }
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
    type Context<'a> = RingContext<'a, T, C::Device>;
    type Driven<'a>
        = Rotate<'a, K, C, T>
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> Result<Self> {
        Ok(Self { group, use_sync: spec.use_sync, plans: PlanCache::new() })
    }

    fn communicator(&self) -> &C {
        &self.group
    }

    fn pre_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> Result<(AttentionCall<'a, T, C::Device>, Self::Context<'a>)> {
        let (rank, ranks) = (self.group.rank(), self.group.size());
        let signature = request.signature(NAME, "rotate");
        let band = request.band(ranks);
        let first_query = rank * request.query.shape()[1];
        let Some(joint) = request.joint else {
            let AttentionRequest { query, kv, scale, out, lse, .. } = request;
            let context = RingContext { signature, joint: None, first_query, back: None };
            return Ok((AttentionCall { query, kv, band, scale, out, lse }, context));
        };
        let plans = self.plans.get(&signature, || Ok(gather_joint_rows(rank, ranks, &request)))?;
        let mine = share(request.joint_tokens(), ranks, rank);
        let joint_rows = joint.query.narrow(1, mine.start, mine.len())?;
        let query = concatenate(scope, joint.order, joint_rows, request.query)?;
        let AttentionRequest { kv, scale, out, lse, .. } = request;
        let (home, (out, lse)) = Home::keep(scope, signature, (out, lse), query.shape())?;
        let call = AttentionCall { query, kv, band, scale, out, lse };
        Ok((call, RingContext { signature, joint: Some(joint.kv), first_query, back: Some((home, plans)) }))
    }

    #[inline]
    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, context: &'a Self::Context<'c>) -> Rotate<'a, K, C, T> {
        let RingContext { signature, joint, first_query, .. } = *context;
        Rotate { kernel, group: &self.group, signature, joint, first_query }
    }

    fn post_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: Self::Context<'a>,
    ) -> Result<()> {
        if let Some((home, plans)) = context.back {
            home.send(&self.group, scope, &plans, call)?;
        }
        settle(self.use_sync, scope)
    }
}

/// Local rows stay; the joint rows that this rank has computed go to everybody.
fn gather_joint_rows<T: Element, D>(
    rank: usize,
    ranks: usize,
    request: &AttentionRequest<'_, T, D>,
) -> HomePlans {
    let mut plans = HomePlans::default();
    let [batch, tokens, heads, head_dim] = request.query.shape();
    let joint = request.joint_tokens();
    let mine = share(joint, ranks, rank);
    let (joint_inside, local_inside) = request.joint_strategy().starts(mine.len(), tokens);
    let (joint_outside, local_outside) = request.joint_strategy().starts(joint, tokens);
    plans.send(rank, [local_inside, 0], [batch, tokens, heads, head_dim]);
    plans.receive(rank, [local_outside, 0], [batch, tokens, heads, head_dim]);
    for peer in 0..ranks {
        let its = share(joint, ranks, peer);
        plans.send(peer, [joint_inside, 0], [batch, mine.len(), heads, head_dim]);
        plans.receive(peer, [joint_outside + its.start, 0], [batch, its.len(), heads, head_dim]);
    }
    plans
}

/// A kernel driven round the ring: one [`step`](CarriesState::step) for each rank's block.
///
/// The call's band counts global positions; each block is given the band as seen from its own place, and blocks that
/// no query here may attend cost nothing.
pub struct Rotate<'a, K, C: Communicator, T> {
    kernel: &'a K,
    group: &'a C,
    signature: Signature,
    joint: Option<KeyValue<'a, T, C::Device>>,
    first_query: usize,
}

impl<K, C: Communicator, T> core::fmt::Debug for Rotate<'_, K, C, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Rotate").field("signature", &self.signature).finish_non_exhaustive()
    }
}

impl<K, C, T> AttentionKernel<C::Device, T> for Rotate<'_, K, C, T>
where
    K: CarriesState<C::Device, T>,
    C: Communicator,
    T: Element,
{
    fn forward(&self, scope: Scope<'_, C::Device>, call: &mut AttentionCall<'_, T, C::Device>) -> Result<()> {
        let &mut AttentionCall { query, kv, band, scale, .. } = call;
        let rows = query.shape()[1];
        let mut state = self.kernel.begin(scope, query.shape())?;
        if let Some(joint) = self.joint {
            self.kernel.step(scope, query, joint, Band::FULL, scale, &mut state)?;
        }
        self.group.rotate(scope, &self.signature, kv, |owner, block| {
            let seq_k = block.key.shape()[1];
            // With joint rows among the queries the band is full, and rows need no position.
            let band = band.from_block(self.first_query, owner * seq_k);
            match band.cover(&(0..rows), &(0..seq_k)) {
                Cover::Skip => Ok(()),
                Cover::Full | Cover::Partial => {
                    self.kernel.step(scope, query, block, band, scale, &mut state)
                }
            }
        })?;
        self.kernel.finish(scope, state, call.out.reborrow(), call.lse.as_mut().map(ViewMut::reborrow))
    }
}
