//! What of an exchange depends on shapes alone.

use attn_plan::{HeadLayout, HeadRun, SequenceLayout, Sharding, Split, portion};

use super::edges::Packed;
use crate::comm::ExchangePlan;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::metadata::KeyPlacement;
use crate::strategy::AttentionRequest;
use crate::strategy::home::HomePlans;
use crate::tensor::Element;

/// Where the keys of joint tokens go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::strategy) enum JointKeys {
    /// Before the others: one kernel call sees both.
    First,
    /// They stay apart, in `ReshardContext::joint`.
    Apart,
}

impl JointKeys {
    /// How much room they take before the others.
    const fn room(self, joint: usize) -> usize {
        match self {
            Self::First => joint,
            Self::Apart => 0,
        }
    }
}

/// What of a call depends on its shapes alone.
#[derive(Debug)]
pub(in crate::strategy) struct Plans {
    pub(super) query: SequenceLayout,
    pub(super) key: SequenceLayout,
    /// Who computes which heads.
    pub(super) heads: HeadLayout,
    /// This rank's heads, as a kernel takes them; none if one call takes all.
    pub(in crate::strategy) head_runs: Vec<HeadRun>,
    /// How many keys each outer rank's part has.
    pub(in crate::strategy) part_lengths: Vec<usize>,
    pub(super) scatter_query: ExchangePlan,
    pub(super) scatter_keys: ExchangePlan,
    /// The same exchanges, where edges write what goes.
    pub(super) packed_query: Packed,
    pub(super) packed_keys: Packed,
    pub(super) home: HomePlans,
}

impl Plans {
    pub(super) fn new<T: Element, D: Device>(
        sharding: Sharding,
        rank: usize,
        joint_keys: JointKeys,
        request: &AttentionRequest<'_, T, D>,
    ) -> Result<Self> {
        let [batch, seq_q, all_heads, head_dim] = request.query.shape();
        let [_, seq_k, all_kv_heads, _] = request.kv.key.shape();
        let fails = |tensor| move |error| Error::SeqSplit { tensor, error };
        let query = sharding.sequence(request.sequence.query).map_err(fails("query"))?;
        // Replicated keys need not divide: whoever walks over them cuts them as suits.
        let key = match request.keys {
            KeyPlacement::Sharded => sharding,
            KeyPlacement::Replicated => Sharding { split: Split::Uneven, ..sharding },
        };
        let key = key.sequence(request.sequence.key).map_err(fails("key"))?;
        let layout = sharding.heads(all_heads, all_kv_heads)?;
        let (ulysses, outer) = sharding.place(rank);
        let (heads, kv_heads) = (layout.heads(ulysses), layout.kv_heads(ulysses));

        let joint = request.joint_tokens();
        let order = request.joint_strategy();
        let my_rows = portion(joint, sharding.outer, outer).len();
        let room = joint_keys.room(joint);
        let (joint_outside, tokens_outside) = order.starts(joint, seq_q);
        let mut plans = Self {
            query,
            key,
            heads: layout,
            head_runs: layout.runs(ulysses),
            part_lengths: (0..sharding.outer).map(|outer| key.part(outer).len()).collect(),
            scatter_query: ExchangePlan::default(),
            scatter_keys: ExchangePlan::default(),
            packed_query: Packed::default(),
            packed_keys: Packed::default(),
            home: HomePlans::default(),
        };
        if plans.head_runs.len() == 1 {
            plans.head_runs.clear();
        }
        for peer in 0..sharding.ulysses {
            // The peer's heads of my positions go out; my heads of the peer's positions come in.
            let its = sharding.rank(peer, outer);
            let (its_heads, its_kv_heads) = (layout.heads(peer), layout.kv_heads(peer));
            let (its_queries, its_keys) = (query.within_part(its), key.within_part(its));
            let scatter = &mut plans.scatter_query;
            scatter.send(its, [0, 0, its_heads.start, 0], [batch, seq_q, its_heads.len(), head_dim]);
            scatter.receive(
                its,
                [0, my_rows + its_queries.start, 0, 0],
                [batch, its_queries.len(), heads.len(), head_dim],
            );
            if request.keys == KeyPlacement::Sharded {
                let scatter = &mut plans.scatter_keys;
                scatter.send(
                    its,
                    [0, 0, its_kv_heads.start, 0],
                    [batch, seq_k, its_kv_heads.len(), head_dim],
                );
                scatter.receive(
                    its,
                    [0, room + its_keys.start, 0, 0],
                    [batch, its_keys.len(), kv_heads.len(), head_dim],
                );
            }
            // The other way round.
            plans.home.send(
                its,
                [my_rows + its_queries.start, 0],
                [batch, its_queries.len(), heads.len(), head_dim],
            );
            plans.home.receive(
                its,
                [tokens_outside, its_heads.start],
                [batch, seq_q, its_heads.len(), head_dim],
            );
        }
        plans.packed_query = Packed::of(&plans.scatter_query, rank);
        plans.packed_keys = Packed::of(&plans.scatter_keys, rank);
        if joint > 0 {
            // The joint rows of my heads go to everybody.
            for peer in 0..sharding.ranks() {
                let (ulysses, outer) = sharding.place(peer);
                let (its_rows, its_heads) = (portion(joint, sharding.outer, outer), layout.heads(ulysses));
                plans.home.send(peer, [0, 0], [batch, my_rows, heads.len(), head_dim]);
                plans.home.receive(
                    peer,
                    [joint_outside + its_rows.start, its_heads.start],
                    [batch, its_rows.len(), its_heads.len(), head_dim],
                );
            }
        }
        Ok(plans)
    }
}
