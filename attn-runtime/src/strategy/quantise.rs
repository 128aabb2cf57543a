//! Rounding to 8 bits before the exchange of sequence for heads.
//!
//! J. Zhang et al., "SageAttention2", 2024, arXiv:2411.10958, for what is rounded how; that queries, keys and values take half
//! the time on their way in 8 bits is known from FlashInfer's and cache-dit's transports of Ulysses.

use core::marker::PhantomData;
use core::ops::Range;
use std::sync::Arc;

use attn_plan::{HeadLayout, MaskKinds, Sharding};

use crate::comm::{Communicator, ExchangePlan, Signature, Transfer};
use crate::device::{Device, Scope};
use crate::error::{Error, Result};
use crate::kernel::{
    AttentionCall, AttentionKernel, QuantisedAttention, QuantisedShard, QuantisedTensors, Shards,
};
use crate::strategy::ParallelAttentionContext;
use crate::strategy::reshard::{DirectContext, Reshard};
use crate::tensor::Element;

/// What a kernel needs to know of a call to exchange for it, and what the way back does.
pub struct QuantisedContext<'a, T, D: Device> {
    pub(super) back: DirectContext<'a, T, D>,
    /// Absent if one rank has everything.
    pub(super) exchanged: Option<(Signature, Arc<Plans>)>,
}

impl<T, D: Device> ParallelAttentionContext for QuantisedContext<'_, T, D> {
    fn name(&self) -> &'static str {
        self.back.name()
    }
}

impl<T, D: Device> core::fmt::Debug for QuantisedContext<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("QuantisedContext").field("exchanged", &self.exchanged).finish_non_exhaustive()
    }
}

/// What of an exchange depends on shapes alone.
#[derive(Debug)]
pub(super) struct Plans {
    batch: usize,
    head_dim: usize,
    /// Of all ranks.
    heads: [usize; 2],
    /// Of this rank inside.
    own_heads: [Range<usize>; 2],
    queries: Shards,
    keys: Shards,
    /// Blocks of keys that this rank has keys of.
    blocks: usize,
    /// Blocks of all keys.
    all_blocks: usize,
    sums: ExchangePlan,
    /// None if no block lies on two shards.
    maxima: Option<ExchangePlan>,
    query: ExchangePlan,
    query_scale: ExchangePlan,
    key: ExchangePlan,
    key_scale: ExchangePlan,
}

impl Plans {
    /// `block`: keys that share their scales, and how many scales these are.
    pub(super) fn new(call: &Signature, rank: usize, block: [usize; 2]) -> Result<Self> {
        let Signature { sharding, query, key, joint: (joint, _), .. } = *call;
        let [batch, queries, heads, head_dim] = query;
        let [_, keys, kv_heads, _] = key;
        let layout = sharding.heads(heads, kv_heads)?;
        whole_groups(call.strategy, sharding, &layout, [heads, kv_heads])?;
        let shards = |tokens| Shards { shards: sharding.ulysses, shard: rank, joint, tokens };
        let (queries, keys) = (shards(queries), shards(keys));
        let [block_keys, scales] = block;
        let own_heads = [layout.heads(rank), layout.kv_heads(rank)];
        let [inside, kv_inside] = own_heads.each_ref().map(Range::len);
        let blocks = keys.blocks(rank, block_keys);
        let owned = keys.owned_blocks(rank, block_keys);
        let everywhere = |width: usize| {
            let mut plan = ExchangePlan::default();
            for peer in 0..sharding.ulysses {
                plan.send(peer, [0; 4], [batch, kv_heads, 1, width]);
                plan.receive(peer, [0, 0, peer, 0], [batch, kv_heads, 1, width]);
            }
            plan
        };
        let mut plans = Self {
            batch,
            head_dim,
            heads: [heads, kv_heads],
            own_heads,
            queries,
            keys,
            blocks: blocks.len(),
            all_blocks: keys.all().div_ceil(block_keys),
            sums: everywhere(2 * head_dim),
            maxima: keys.straddle(block_keys).then(|| everywhere(2 * scales)),
            query: ExchangePlan::default(),
            query_scale: ExchangePlan::default(),
            key: ExchangePlan::default(),
            key_scale: ExchangePlan::default(),
        };
        for peer in 0..sharding.ulysses {
            let (its_heads, its_kv_heads) = (layout.heads(peer), layout.kv_heads(peer));
            let (its_queries, its_keys) = (queries.range(peer), keys.range(peer));
            let its_blocks = keys.owned_blocks(peer, block_keys);
            // Rows of the peer's heads go out; rows of this rank's heads come in.
            let mut rows = |plan: fn(&mut Self) -> &mut ExchangePlan, own, its: Range<usize>, width| {
                let plan = plan(&mut plans);
                plan.send(peer, [0, its_heads.start, 0, 0], [batch, its_heads.len(), own, width]);
                plan.receive(peer, [0, 0, its.start, 0], [batch, inside, its.len(), width]);
            };
            rows(|plans| &mut plans.query, queries.own().len(), its_queries.clone(), head_dim);
            rows(|plans| &mut plans.query_scale, queries.own().len(), its_queries, 1);
            let kv = [batch, its_kv_heads.len(), keys.own().len(), head_dim];
            plans.key.send(peer, [0, its_kv_heads.start, 0, 0], kv);
            plans.key.receive(peer, [0, 0, its_keys.start, 0], [batch, kv_inside, its_keys.len(), head_dim]);
            // A rank without keys may stand in the midst of a block: of that it has nothing.
            let first = owned.start.saturating_sub(blocks.start).min(blocks.len());
            let from = [0, its_kv_heads.start, first, 0];
            plans.key_scale.send(peer, from, [batch, its_kv_heads.len(), owned.len(), scales]);
            let to = [batch, kv_inside, its_blocks.len(), scales];
            plans.key_scale.receive(peer, [0, 0, its_blocks.start, 0], to);
        }
        Ok(plans)
    }
}

/// Refuses heads that some rank would attend in several calls: its tensors in 8 bits are dense.
fn whole_groups(
    strategy: &str,
    sharding: Sharding,
    layout: &HeadLayout,
    [heads, kv_heads]: [usize; 2],
) -> Result<()> {
    match (0..sharding.ulysses).find(|&rank| layout.runs(rank).len() > 1) {
        None => Ok(()),
        Some(rank) => Err(Error::Configuration(format!(
            "strategy `{strategy}`: {heads} query heads over {kv_heads} key heads on {} ranks give rank {rank} parts of \
             several groups; use a number of ranks that divides both, or strategy `ulysses`",
            sharding.ulysses
        ))),
    }
}

/// In the kernel's place: rounds, exchanges, and has the kernel attend on what comes.
pub struct QuantiseFirst<'a, K, C: Communicator, T> {
    pub(super) kernel: &'a K,
    pub(super) reshard: &'a Reshard<C>,
    pub(super) context: Option<&'a (Signature, Arc<Plans>)>,
    pub(super) elements: PhantomData<fn() -> T>,
}

impl<K, C: Communicator, T> core::fmt::Debug for QuantiseFirst<'_, K, C, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("QuantiseFirst").field("context", &self.context).finish_non_exhaustive()
    }
}

impl<K, C, T> AttentionKernel<C::Device, T> for QuantiseFirst<'_, K, C, T>
where
    K: QuantisedAttention<C::Device, T>,
    C: Communicator,
    T: Element,
{
    const MASKS: MaskKinds = K::MASKS;

    fn forward(&self, scope: Scope<'_, C::Device>, call: &mut AttentionCall<'_, T, C::Device>) -> Result<()> {
        let Some((signature, plans)) = self.context else { return self.kernel.forward(scope, call) };
        let (kernel, group) = (self.kernel, self.reshard.group());
        let exchange = |stage, transfers: &mut [Transfer<'_, C::Device>]| {
            group.exchange(scope, &Signature { stage, ..*signature }, transfers)
        };
        let &Plans { batch, head_dim, heads: [heads, kv_heads], queries, keys, .. } = &**plans;
        let of_channels = || scope.take([batch, kv_heads, 1, head_dim]);
        let mut shard = QuantisedShard {
            query: call.query,
            kv: call.kv,
            keys,
            scale: call.scale,
            key_lengths: call.mask.key_lengths,
            resident_lengths: None,
            key_mean: of_channels()?,
            value_scale: of_channels()?,
        };

        let mut sums = scope.take([batch, kv_heads, 1, 2 * head_dim])?;
        let mut all_sums = scope.take([batch, kv_heads, keys.shards, 2 * head_dim])?;
        kernel.survey(scope, &mut shard, sums.reborrow())?;
        exchange("survey", &mut [Transfer::new(&plans.sums, sums.into_view(), all_sums.reborrow())?])?;
        kernel.settle(scope, &mut shard, all_sums.into_view())?;

        let maxima = match &plans.maxima {
            None => None,
            Some(plan) => {
                let mut own = scope.take([batch, kv_heads, 1, 2 * K::KEY_SCALES])?;
                let mut all = scope.take([batch, kv_heads, keys.shards, 2 * K::KEY_SCALES])?;
                kernel.edge_maxima(scope, &shard, own.reborrow())?;
                exchange("edge_maxima", &mut [Transfer::new(plan, own.into_view(), all.reborrow())?])?;
                Some(all.into_view())
            }
        };

        let take = |[heads, kv_heads]: [usize; 2], [queries, keys, blocks]: [usize; 3], lse: bool| {
            QuantisedTensors::take(
                scope,
                [batch, heads, kv_heads, head_dim],
                [queries, keys, blocks, K::KEY_SCALES],
                lse,
            )
        };
        let lse = call.lse.is_some();
        let mut outside =
            take([heads, kv_heads], [queries.own().len(), keys.own().len(), plans.blocks], lse)?;
        kernel.quantise(scope, &shard, maxima, &mut outside)?;
        let mut inside = take(
            plans.own_heads.each_ref().map(Range::len),
            [queries.all(), keys.all(), plans.all_blocks],
            lse,
        )?;
        {
            let QuantisedTensors { query, key, value, query_scale, query_mean, key_scale } = outside;
            let mean = match (query_mean, &mut inside.query_mean) {
                (Some(from), Some(to)) => {
                    Some(Transfer::new(&plans.query_scale, from.into_view(), to.reborrow())?)
                }
                _ => None,
            };
            let query = Transfer::new(&plans.query, query.into_view(), inside.query.reborrow())?;
            let key = Transfer::new(&plans.key, key.into_view(), inside.key.reborrow())?;
            let value = Transfer::new(&plans.key, value.into_view(), inside.value.reborrow())?;
            let query_scale =
                Transfer::new(&plans.query_scale, query_scale.into_view(), inside.query_scale.reborrow())?;
            let key_scale =
                Transfer::new(&plans.key_scale, key_scale.into_view(), inside.key_scale.reborrow())?;
            match mean {
                None => exchange("scatter", &mut [query, key, value, query_scale, key_scale])?,
                Some(mean) => exchange("scatter", &mut [query, key, value, query_scale, key_scale, mean])?,
            }
        }
        self.reshard.settle(scope)?;
        if call.out.shape().contains(&0) {
            return Ok(());
        }
        let own = plans.own_heads[1].clone();
        let mut value_scale = scope.take([batch, own.len(), 1, head_dim])?;
        scope.copy(shard.value_scale.as_view().narrow(1, own.start, own.len())?, value_scale.reborrow())?;
        kernel.attend(scope, &inside, value_scale.into_view(), shard.resident_lengths, call)
    }
}

#[cfg(test)]
mod tests;
