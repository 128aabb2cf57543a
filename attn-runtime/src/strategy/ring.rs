//! Ring: queries stay, keys and values go round.
//!
//! H. Liu, M. Zaharia, P. Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023,
//! arXiv:2310.01889, section 3. Ring is no matter of before and after: it drives the kernel once per block, so it
//! stands in the kernel's place, as the adapter [`Rotate`]. Partial results are carried in fp32, not merged.

use crate::comm::{Communicator, ExchangePlan, Signature, Transfer};
use crate::device::{Device, Scope};
use crate::error::{Error, Result};
use crate::kernel::{AttentionCall, AttentionKernel, Band, CarriesState, Cover};
use crate::sequence::share;
use crate::spec::AttentionSpec;
use crate::strategy::joint::concatenate;
use crate::strategy::{AttentionRequest, ParallelAttentionContext, ParallelAttentionStrategy};
use crate::tensor::{Element, TensorLayout, ViewMut};

const NAME: &str = "ring";

/// How many shapes' plans are kept. More at once than a model has; the oldest goes first.
const PLANS: usize = 32;

/// Every rank keeps its queries and meets every rank's keys and values in turn. Any number of heads will do.
///
/// Joint keys and values are attended once, besides the blocks. Joint queries are shared out: each rank computes some
/// of their rows, and the rows are gathered afterwards, so that each is computed once.
#[derive(Debug)]
pub struct RingParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    group: C,
    use_sync: bool,
    /// The call that is under way: what ranks compare when they rotate.
    signature: Option<Signature>,
    plans: Vec<(Signature, Plans)>,
}

/// How joint rows are gathered, for one shape.
#[derive(Debug)]
struct Plans {
    out: ExchangePlan,
    lse: ExchangePlan,
}

/// The way back.
pub struct RingContext<'a, T, D> {
    /// Absent without joint tokens: then the kernel wrote the caller's outputs itself.
    back: Option<Back<'a, T, D>>,
}

struct Back<'a, T, D> {
    signature: Signature,
    /// Where the signature's plans stand.
    plans: usize,
    out: ViewMut<'a, T, D>,
    lse: Option<ViewMut<'a, f32, D>>,
}

impl<T, D> ParallelAttentionContext for RingContext<'_, T, D> {
    fn name(&self) -> &'static str {
        NAME
    }
}

impl<T, D> core::fmt::Debug for RingContext<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RingContext").field("joint", &self.back.is_some()).finish()
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
        = Rotate<'a, K, C>
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> Result<Self> {
        Ok(Self { group, use_sync: spec.use_sync, signature: None, plans: Vec::with_capacity(PLANS) })
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
        self.signature = Some(signature);
        let band = request.band(ranks);
        let Some(joint) = request.joint else {
            let AttentionRequest { query, keys, scale, out, lse, .. } = request;
            return Ok((
                AttentionCall { query, keys, joint: None, band, scale, out, lse },
                RingContext { back: None },
            ));
        };
        let plans = self.plans(&request, signature);
        let mine = share(request.joint_tokens(), ranks, rank);
        let joint_rows = joint.query.narrow(1, mine.start, mine.len())?;
        let query = concatenate(scope, joint.strategy, joint_rows, request.query)?;
        let out = scope.take(query.shape())?;
        let [batch, rows, heads, _] = out.shape();
        let lse = request.lse.is_some().then(|| scope.take([batch, rows, heads, 1])).transpose()?;
        let AttentionRequest { keys, scale, out: final_out, lse: final_lse, .. } = request;
        let call = AttentionCall { query, keys, joint: Some(joint.keys), band, scale, out, lse };
        let signature = Signature { stage: "post_attention", ..signature };
        Ok((call, RingContext { back: Some(Back { signature, plans, out: final_out, lse: final_lse }) }))
    }

    #[inline]
    fn kernel<'a>(&'a self, kernel: &'a K) -> Rotate<'a, K, C> {
        Rotate { kernel, group: &self.group, signature: self.signature }
    }

    fn post_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: Self::Context<'a>,
    ) -> Result<()> {
        if let Some(Back { signature, plans, out, lse }) = context.back {
            let plans = &self.plans[plans].1;
            let out = Transfer::new(&plans.out, call.out.into_view(), out)?;
            match (call.lse, lse) {
                (Some(from), Some(to)) => {
                    let lse = Transfer::new(&plans.lse, from.into_view(), to)?;
                    self.group.exchange(scope, &signature, &mut [out, lse])?;
                }
                _ => self.group.exchange(scope, &signature, &mut [out])?,
            }
        }
        if self.use_sync { C::Device::synchronize(scope.queue()) } else { Ok(()) }
    }
}

impl<C: Communicator, const SCATTER: usize, const GATHER: usize> RingParallelAttention<C, SCATTER, GATHER> {
    /// Where the plans of a request's shape stand; made if they are new.
    fn plans<T: Element>(&mut self, request: &AttentionRequest<'_, T, C::Device>, key: Signature) -> usize {
        if let Some(index) = self.plans.iter().position(|(other, _)| *other == key) {
            return index;
        }
        let plans = Plans::new(self.group.rank(), self.group.size(), request);
        if self.plans.len() == PLANS {
            self.plans.remove(0);
        }
        self.plans.push((key, plans));
        self.plans.len() - 1
    }
}

impl Plans {
    fn new<T: Element, D>(rank: usize, ranks: usize, request: &AttentionRequest<'_, T, D>) -> Self {
        let mut plans = Self { out: ExchangePlan::default(), lse: ExchangePlan::default() };
        let [batch, tokens, heads, head_dim] = request.query.shape();
        let joint = request.joint_tokens();
        let mine = share(joint, ranks, rank);
        let inside = request.joint_strategy().starts(mine.len(), tokens);
        let outside = request.joint_strategy().starts(joint, tokens);
        for (plan, width) in [(&mut plans.out, head_dim), (&mut plans.lse, 1)] {
            plan.send(rank, [0, inside.1, 0, 0], [batch, tokens, heads, width]);
            plan.receive(rank, [0, outside.1, 0, 0], [batch, tokens, heads, width]);
            for peer in 0..ranks {
                let its = share(joint, ranks, peer);
                plan.send(peer, [0, inside.0, 0, 0], [batch, mine.len(), heads, width]);
                plan.receive(peer, [0, outside.0 + its.start, 0, 0], [batch, its.len(), heads, width]);
            }
        }
        plans
    }
}

/// A kernel driven round the ring: one [`step`](CarriesState::step) for each rank's block.
///
/// The call's band counts global positions; each block is given the band as seen from its own place, and blocks that
/// no query here may attend cost nothing.
pub struct Rotate<'a, K, C> {
    kernel: &'a K,
    group: &'a C,
    signature: Option<Signature>,
}

impl<K, C: core::fmt::Debug> core::fmt::Debug for Rotate<'_, K, C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Rotate").field("group", &self.group).finish_non_exhaustive()
    }
}

impl<K, C, T> AttentionKernel<C::Device, T> for Rotate<'_, K, C>
where
    K: CarriesState<C::Device, T>,
    C: Communicator,
    T: Element,
{
    fn forward(&self, scope: Scope<'_, C::Device>, call: &mut AttentionCall<'_, T, C::Device>) -> Result<()> {
        let signature =
            self.signature.ok_or_else(|| Error::Plan(String::from("ring rotates before it prepared")))?;
        let &mut AttentionCall { query, keys, joint, band, scale, .. } = call;
        let seq_q = query.shape()[1];
        let first_query = self.group.rank() * seq_q;
        let mut state = self.kernel.begin(scope, query.shape())?;
        if let Some(joint) = joint {
            self.kernel.step(scope, query, joint, Band::FULL, scale, &mut state)?;
        }
        self.group.rotate(scope, &signature, keys, |owner, block| {
            let seq_k = block.key.shape()[1];
            let band = band.from_block(first_query, owner * seq_k);
            match band.cover(&(0..seq_q), &(0..seq_k)) {
                Cover::Skip => Ok(()),
                Cover::Full | Cover::Partial => {
                    self.kernel.step(scope, query, block, band, scale, &mut state)
                }
            }
        })?;
        self.kernel.finish(scope, state, call.out.reborrow(), call.lse.as_mut().map(ViewMut::reborrow))
    }
}
