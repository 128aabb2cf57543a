//! All-gather: queries stay, every rank gets the keys and values that its queries need.
//!
//! As the context parallelism of A. Dubey et al., "The Llama 3 Herd of Models", 2024, arXiv:2407.21783, section 3.3.2:
//! keys and values are gathered before one kernel call. Under a mask by position no rank is sent what none of its queries
//! may attend.

use core::ops::Range;
use std::sync::Arc;

use attn_plan::{MaskKinds, Run, Span};

use crate::comm::{Communicator, ExchangePlan, Signature, Transfer};
use crate::device::{Device, Scope};
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel};
use crate::metadata::KeyPlacement;
use crate::strategy::ParallelAttentionContext;
use crate::strategy::frame::Frame;
use crate::strategy::home::PlanCache;
use crate::strategy::reshard::ReshardContext;
use crate::tensor::{Element, KeyValue, ViewMut};

/// A kernel called once, with the keys of all ranks.
pub struct Gather<'a, K, C: Communicator, T> {
    pub(super) kernel: K,
    /// The ranks that gather each other's keys.
    pub(super) group: &'a C,
    pub(super) context: &'a GatherContext<'a, T, C::Device>,
}

/// What the gathering and the way back must know of the way in.
pub struct GatherContext<'a, T, D: Device> {
    pub(super) reshard: ReshardContext<'a, T, D>,
    plan: Arc<GatherPlan>,
}

impl<T, D: Device> ParallelAttentionContext for GatherContext<'_, T, D> {
    fn name(&self) -> &'static str {
        self.reshard.name()
    }
}

impl<T, D: Device> core::fmt::Debug for GatherContext<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GatherContext").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// Which keys go where.
#[derive(Debug)]
struct GatherPlan {
    /// The positions that this rank's queries need.
    needed: Range<usize>,
    exchange: ExchangePlan,
}

/// The plans of a strategy that gathers.
#[derive(Debug)]
pub(super) struct GatherPlans(PlanCache<GatherPlan>);

impl GatherPlans {
    pub(super) fn new() -> Self {
        Self(PlanCache::new())
    }

    /// Adds a call's plan; made if its shapes are new.
    pub(super) fn prepare<'a, T, D: Device>(
        &mut self,
        reshard: ReshardContext<'a, T, D>,
        kv: &KeyValue<'_, T, D>,
    ) -> Result<GatherContext<'a, T, D>> {
        let [batch, _, heads, head_dim] = kv.key.shape();
        let frame = &reshard.frame;
        let plan = self.0.get(&reshard.signature, || Ok(GatherPlan::new(frame, [batch, heads, head_dim])))?;
        Ok(GatherContext { reshard, plan })
    }
}

impl GatherPlan {
    fn new<D: Device>(frame: &Frame<'_, D>, [batch, heads, head_dim]: [usize; 3]) -> Self {
        let stretch = |outer: usize| stretch(frame.key.part(outer).runs().map(|(_, run)| run).next());
        let (mine, needed) = (stretch(frame.outer), frame.needed(frame.outer));
        let room = frame.joint.0;
        let mut exchange = ExchangePlan::default();
        if frame.keys == KeyPlacement::Sharded {
            for peer in 0..frame.key.sharding().outer {
                let (its, it_needs) = (stretch(peer), frame.needed(peer));
                if let Some(out) = both(&mine, &it_needs) {
                    exchange.send(
                        peer,
                        [0, out.start - mine.start, 0, 0],
                        [batch, out.len(), heads, head_dim],
                    );
                }
                if let Some(inward) = both(&its, &needed) {
                    let to = room + inward.start - needed.start;
                    exchange.receive(peer, [0, to, 0, 0], [batch, inward.len(), heads, head_dim]);
                }
            }
        }
        Self { needed, exchange }
    }
}

/// A run of consecutive positions as a range: where ranks gather, each holds one.
fn stretch(run: Option<Run>) -> Range<usize> {
    run.map_or(0..0, |run| run.start..run.start + run.len)
}

/// What lies in both.
fn both(a: &Range<usize>, b: &Range<usize>) -> Option<Range<usize>> {
    let (start, end) = (a.start.max(b.start), a.end.min(b.end));
    (start < end).then_some(start..end)
}

impl<D: Device> Frame<'_, D> {
    /// The stretch of keys that the queries of an outer rank's part may attend, by position: at least one key, so that
    /// there is something to call a kernel with; none if there are no queries.
    fn needed(&self, outer: usize) -> Range<usize> {
        let seq = self.key.seq();
        let joint_rows = attn_plan::portion(self.joint.0, self.query.sharding().outer, outer);
        let queries = stretch(self.query.part(outer).runs().map(|(_, run)| run).next());
        if queries.is_empty() && joint_rows.is_empty() {
            return 0..0;
        }
        if self.mask.span == Span::Full {
            return 0..seq;
        }
        let band = self.band();
        let first = band.keys_of(queries.start, &(0..seq)).start;
        let last = band.keys_of(queries.end - 1, &(0..seq)).end;
        if first < last {
            first..last
        } else {
            let first = first.min(seq - 1);
            first..first + 1
        }
    }
}

impl<K, C: Communicator, T> core::fmt::Debug for Gather<'_, K, C, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Gather").field("context", &self.context).finish_non_exhaustive()
    }
}

impl<K, C, T> AttentionKernel<C::Device, T> for Gather<'_, K, C, T>
where
    K: AttentionKernel<C::Device, T>,
    C: Communicator,
    T: Element,
{
    const MASKS: MaskKinds = K::MASKS;

    fn forward(&self, scope: Scope<'_, C::Device>, call: &mut AttentionCall<'_, T, C::Device>) -> Result<()> {
        let GatherContext { reshard: ReshardContext { signature, frame, joint, .. }, plan } = self.context;
        let GatherPlan { needed, exchange } = &**plan;
        let room = frame.joint.0;
        let [batch, _, heads, head_dim] = call.kv.key.shape();
        let replicated = frame.keys == KeyPlacement::Replicated;
        let kv = if replicated && joint.is_none() {
            call.kv.narrow(1, needed.start, needed.len())?
        } else {
            let shape = [batch, room + needed.len(), heads, head_dim];
            let (mut key, mut value) = (scope.take(shape)?, scope.take(shape)?);
            if let Some(joint) = joint {
                scope.copy(joint.key, key.reborrow().narrow(1, 0, room)?)?;
                scope.copy(joint.value, value.reborrow().narrow(1, 0, room)?)?;
            }
            if replicated {
                let whole = call.kv.narrow(1, needed.start, needed.len())?;
                scope.copy(whole.key, key.reborrow().narrow(1, room, needed.len())?)?;
                scope.copy(whole.value, value.reborrow().narrow(1, room, needed.len())?)?;
            } else {
                let signature = Signature { stage: "gather", ..*signature };
                let mut transfers = [
                    Transfer::new(exchange, call.kv.key, key.reborrow())?,
                    Transfer::new(exchange, call.kv.value, value.reborrow())?,
                ];
                self.group.exchange(scope, &signature, &mut transfers)?;
            }
            KeyValue { key: key.into_view(), value: value.into_view() }
        };
        if call.query.shape().contains(&0) {
            return Ok(());
        }
        let mask = frame.call(scope, room, Run::of(needed.clone()))?;
        let AttentionCall { query, scale, .. } = *call;
        let (out, lse) = (call.out.reborrow(), call.lse.as_mut().map(ViewMut::reborrow));
        self.kernel.forward(scope, &mut AttentionCall { query, kv, mask, scale, out, lse })
    }
}
