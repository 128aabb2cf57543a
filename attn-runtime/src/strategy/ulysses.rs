//! Ulysses: exchange sequence for heads before the kernel, and back after it.
//!
//! S. A. Jacobs et al., "DeepSpeed Ulysses: System Optimizations for Enabling Training of Extreme Long Sequence
//! Transformer Models", 2023, arXiv:2309.14509, section 3.1. Joint tokens as in dual-stream transformers: their heads
//! are sliced, not exchanged; their output is gathered on heads.

use std::sync::Arc;

use crate::comm::{Communicator, ExchangePlan, Transfer};
use crate::device::Scope;
use crate::error::Result;
use crate::kernel::{AttentionCall, AttentionKernel};
use crate::sequence::SequenceLayout;
use crate::spec::AttentionSpec;
use crate::strategy::home::{Home, HomePlans, PlanCache, settle};
use crate::strategy::joint::place;
use crate::strategy::{AttentionRequest, ParallelAttentionContext, ParallelAttentionStrategy};
use crate::tensor::{Element, KeyValue, TensorLayout};

const NAME: &str = "ulysses";

/// Every rank holds a slice of the sequence outside the kernel, and computes a slice of the heads inside it.
///
/// With `P` ranks: query `[b, s/P, h, d]` becomes `[b, s, h/P, d]`, keys and values likewise; the output goes the
/// other way. `P` must divide the query heads, and divide the key and value heads or be a multiple of them (then each
/// of those goes to the `P / kv_heads` ranks that need it, and to no other).
#[derive(Debug)]
pub struct UlyssesParallelAttention<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    group: C,
    use_sync: bool,
    plans: PlanCache<Plans>,
}

/// The exchanges of one shape.
#[derive(Debug)]
struct Plans {
    query: SequenceLayout,
    keys: SequenceLayout,
    scatter_query: ExchangePlan,
    scatter_keys: ExchangePlan,
    home: HomePlans,
}

/// The way back.
pub struct UlyssesContext<'a, T, D> {
    /// Absent if the kernel wrote the caller's outputs itself.
    back: Option<(Home<'a, T, D>, Arc<Plans>)>,
}

impl<T, D> ParallelAttentionContext for UlyssesContext<'_, T, D> {
    fn name(&self) -> &'static str {
        NAME
    }
}

impl<T, D> core::fmt::Debug for UlyssesContext<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("UlyssesContext").field("exchanged", &self.back.is_some()).finish()
    }
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
    type Context<'a> = UlyssesContext<'a, T, C::Device>;
    type Driven<'a>
        = &'a K
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> Result<Self> {
        if let Some(heads) = spec.heads {
            attn_plan::check_head_split(heads, spec.kv_heads.unwrap_or(heads), group.size())?;
        }
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
        let band = request.band(ranks);
        if ranks == 1 && request.joint.is_none() {
            let AttentionRequest { query, kv, scale, out, lse, .. } = request;
            return Ok((AttentionCall { query, kv, band, scale, out, lse }, UlyssesContext { back: None }));
        }
        let signature = request.signature(NAME, "pre_attention");
        let plans = self.plans.get(&signature, || Plans::new(rank, ranks, &request))?;

        let [batch, _, _, head_dim] = request.query.shape();
        let joint_tokens = request.joint_tokens();
        let (heads, kv_heads) = (plans.query.heads(rank), plans.keys.kv_heads(rank));
        let whole =
            |layout: &SequenceLayout, heads: usize| [batch, joint_tokens + layout.seq(), heads, head_dim];
        let mut query = scope.take(whole(&plans.query, heads.len()))?;
        let mut key = scope.take(whole(&plans.keys, kv_heads.len()))?;
        let mut value = scope.take(whole(&plans.keys, kv_heads.len()))?;
        if let Some(joint) = request.joint {
            let (query_start, _) = joint.order.starts(joint_tokens, plans.query.seq());
            let (keys_start, _) = joint.order.starts(joint_tokens, plans.keys.seq());
            let sliced = joint.query.narrow(2, heads.start, heads.len())?;
            place(scope, &mut query, query_start, sliced)?;
            for (tensor, whole) in [(joint.kv.key, &mut key), (joint.kv.value, &mut value)] {
                place(scope, whole, keys_start, tensor.narrow(2, kv_heads.start, kv_heads.len())?)?;
            }
        }
        let mut transfers = [
            Transfer::new(&plans.scatter_query, request.query, query.reborrow())?,
            Transfer::new(&plans.scatter_keys, request.kv.key, key.reborrow())?,
            Transfer::new(&plans.scatter_keys, request.kv.value, value.reborrow())?,
        ];
        self.group.exchange(scope, &signature, &mut transfers)?;
        settle(self.use_sync, scope)?;

        let AttentionRequest { scale, out, lse, .. } = request;
        let (home, (out, lse)) = Home::keep(scope, signature, (out, lse), query.shape())?;
        let kv = KeyValue { key: key.into_view(), value: value.into_view() };
        let call = AttentionCall { query: query.into_view(), kv, band, scale, out, lse };
        Ok((call, UlyssesContext { back: Some((home, plans)) }))
    }

    #[inline]
    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, _: &'a Self::Context<'c>) -> &'a K {
        kernel
    }

    fn post_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: Self::Context<'a>,
    ) -> Result<()> {
        let Some((home, plans)) = context.back else { return Ok(()) };
        home.send(&self.group, scope, &plans.home, call)?;
        settle(self.use_sync, scope)
    }
}

impl Plans {
    fn new<T: Element, D>(rank: usize, ranks: usize, request: &AttentionRequest<'_, T, D>) -> Result<Self> {
        let [_, seq_q, heads, head_dim] = request.query.shape();
        let [batch, seq_k, kv_heads, _] = request.kv.key.shape();
        let query = SequenceLayout::strict(ranks, seq_q, heads, kv_heads)?;
        let keys = SequenceLayout::strict(ranks, seq_k, heads, kv_heads)?;
        let mut plans = Self {
            scatter_query: ExchangePlan::default(),
            scatter_keys: ExchangePlan::default(),
            home: HomePlans::default(),
            query,
            keys,
        };
        let (joint, order) = (request.joint_tokens(), request.joint_strategy());
        let (joint_inside, tokens) = order.starts(joint, plans.query.seq());
        let (joint_outside, _) = order.starts(joint, seq_q);
        let (my_heads, my_kv_heads) = (plans.query.heads(rank), plans.keys.kv_heads(rank));
        for peer in 0..ranks {
            // The peer's heads of my positions go out; my heads of the peer's positions come in.
            let (its_heads, its_kv_heads) = (plans.query.heads(peer), plans.keys.kv_heads(peer));
            let (its_queries, its_keys) = (plans.query.positions(peer), plans.keys.positions(peer));
            let scatter = &mut plans.scatter_query;
            scatter.send(peer, [0, 0, its_heads.start, 0], [batch, seq_q, its_heads.len(), head_dim]);
            scatter.receive(
                peer,
                [0, tokens + its_queries.start, 0, 0],
                [batch, seq_q, my_heads.len(), head_dim],
            );
            let scatter = &mut plans.scatter_keys;
            scatter.send(peer, [0, 0, its_kv_heads.start, 0], [batch, seq_k, its_kv_heads.len(), head_dim]);
            scatter.receive(
                peer,
                [0, tokens + its_keys.start, 0, 0],
                [batch, seq_k, my_kv_heads.len(), head_dim],
            );
            // The other way round; and the joint rows of my heads go to everybody.
            let home = &mut plans.home;
            home.send(peer, [tokens + its_queries.start, 0], [batch, seq_q, my_heads.len(), head_dim]);
            home.receive(peer, [tokens, its_heads.start], [batch, seq_q, its_heads.len(), head_dim]);
            if joint > 0 {
                home.send(peer, [joint_inside, 0], [batch, joint, my_heads.len(), head_dim]);
                home.receive(
                    peer,
                    [joint_outside, its_heads.start],
                    [batch, joint, its_heads.len(), head_dim],
                );
            }
        }
        Ok(plans)
    }
}
