//! From the caller's shards to what the kernel computes on, and back: what all strategies have in common.
//!
//! Ulysses ranks exchange sequence for heads: S. A. Jacobs et al., "DeepSpeed Ulysses: System Optimizations for Enabling
//! Training of Extreme Long Sequence Transformer Models", 2023, arXiv:2309.14509, section 3.1. Joint tokens, as dual-stream
//! transformers have them, are not exchanged: every rank has them all. Of their queries each rank computes its own heads
//! (among Ulysses ranks) and its own rows (among the others), and everybody gets them afterwards, so that each is computed
//! once; their keys are attended once, besides the others. Inside, joint tokens stand first, wherever they stand outside.

use core::ops::Range;
use std::sync::Arc;

use attn_plan::{HeadLayout, HeadRun, Run, SequenceLayout, Sharding, portion};

use crate::comm::{Communicator, ExchangePlan, Signature, Traffic, Transfer};
use crate::device::{Device, Scope, copy_tensor};
use crate::error::{Error, Result};
use crate::kernel::{AttentionCall, BlockMask};
use crate::metadata::KeyPlacement;
use crate::spec::AttentionSpec;
use crate::strategy::frame::{Frame, Piece, Pieces};
use crate::strategy::gather::GatherPlan;
use crate::strategy::home::{Home, HomePlans, PlanCache, settle};
use crate::strategy::{AttentionMask, AttentionRequest, ParallelAttentionContext};
use crate::tensor::{Element, KeyValue, View, ViewMut};

/// The exchange round a kernel.
#[derive(Debug)]
pub(super) struct Reshard<C> {
    name: &'static str,
    /// All ranks.
    group: C,
    /// The ranks that exchange heads, if these are some of several groups.
    ulysses: Option<C>,
    sharding: Sharding,
    joint_keys: JointKeys,
    use_sync: bool,
    fuse_qkv: bool,
    plans: PlanCache<Plans>,
}

/// Where the keys of joint tokens go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JointKeys {
    /// Before the others: one kernel call sees both.
    First,
    /// They stay apart, in [`ReshardContext::joint`].
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
pub(super) struct Plans {
    query: SequenceLayout,
    key: SequenceLayout,
    /// Who computes which heads.
    heads: HeadLayout,
    /// This rank's heads, as a kernel takes them; none if one call takes all.
    pub(super) head_runs: Vec<HeadRun>,
    /// How many keys each outer rank's part has.
    pub(super) key_lengths: Vec<usize>,
    scatter_query: ExchangePlan,
    scatter_keys: ExchangePlan,
    home: HomePlans,
}

/// One rank's part of a call, inside the exchange: besides the [`AttentionCall`], what adapters and the way back need.
pub struct ReshardContext<'a, T, D: Device> {
    pub(super) signature: Signature,
    pub(super) plans: Arc<Plans>,
    pub(super) frame: Frame<'a, D>,
    /// Keys and values of joint tokens that are not among the others: this rank's heads.
    pub(super) joint: Option<KeyValue<'a, T, D>>,
    /// How keys are gathered, if they are.
    pub(super) gather: Option<Arc<GatherPlan>>,
    /// Absent if the kernel writes the caller's outputs itself.
    back: Option<Back<'a, T, D>>,
}

impl<T, D: Device> ParallelAttentionContext for ReshardContext<'_, T, D> {
    fn name(&self) -> &'static str {
        self.signature.strategy
    }
}

impl<T, D: Device> core::fmt::Debug for ReshardContext<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ReshardContext").field("signature", &self.signature).finish_non_exhaustive()
    }
}

/// The way back for what the kernel wrote.
struct Back<'a, T, D: Device> {
    home: Home<'a, T, D>,
    plans: Arc<Plans>,
    /// Whether there are joint rows, which go to everybody.
    joint: bool,
}

/// The context of a strategy that calls the kernel once, on all keys.
pub struct DirectContext<'a, T, D: Device> {
    name: &'static str,
    /// Absent if nothing had to be moved.
    back: Option<Back<'a, T, D>>,
}

impl<T, D: Device> DirectContext<'_, T, D> {
    /// This rank's heads, as a kernel takes them; none if one call takes all.
    pub(super) fn head_runs(&self) -> &[HeadRun] {
        self.back.as_ref().map_or(&[], |back| &back.plans.head_runs)
    }
}

impl<T, D: Device> ParallelAttentionContext for DirectContext<'_, T, D> {
    fn name(&self) -> &'static str {
        self.name
    }
}

impl<T, D: Device> core::fmt::Debug for DirectContext<'_, T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("DirectContext")
            .field("name", &self.name)
            .field("moved", &self.back.is_some())
            .finish_non_exhaustive()
    }
}

impl<C: Communicator> Reshard<C> {
    /// Makes the group of the ranks that exchange heads. Collective.
    pub(super) fn open(
        name: &'static str,
        group: C,
        sharding: Sharding,
        joint_keys: JointKeys,
        spec: &AttentionSpec,
    ) -> Result<Self> {
        if let Some(heads) = spec.heads {
            sharding.heads(heads, spec.kv_heads.unwrap_or(heads))?;
        }
        let (_, outer) = sharding.place(group.rank());
        let apart = sharding.ulysses > 1 && sharding.outer > 1;
        let ulysses = apart.then(|| group.split(outer, group.rank())).transpose()?;
        let AttentionSpec { use_sync, fuse_qkv, .. } = *spec;
        Ok(Self { name, group, ulysses, sharding, joint_keys, use_sync, fuse_qkv, plans: PlanCache::new() })
    }

    /// Makes the group of the ranks that share the sequence, of which each Ulysses rank has one of its own. Collective.
    /// None if these are all ranks.
    pub(super) fn open_outer(&self) -> Result<Option<C>> {
        let (ulysses, _) = self.sharding.place(self.group.rank());
        (self.sharding.ulysses > 1).then(|| self.group.split(ulysses, self.group.rank())).transpose()
    }

    pub(super) const fn group(&self) -> &C {
        &self.group
    }

    pub(super) const fn sharding(&self) -> Sharding {
        self.sharding
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.ulysses.iter().fold(self.group.traffic(), |sum, group| sum + group.traffic())
    }

    /// [`pre`](Self::pre) for a kernel that is called once, on all keys. One rank without joint tokens moves nothing.
    #[inline]
    pub(super) fn pre_direct<'a, T: Element>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> Result<(AttentionCall<'a, T, C::Device>, DirectContext<'a, T, C::Device>)> {
        let name = self.name;
        if self.sharding.ulysses == 1 && request.joint.is_none() {
            return Ok((alone(request), DirectContext { name, back: None }));
        }
        let (call, context) = self.pre(scope, request)?;
        Ok((call, DirectContext { name, back: context.back }))
    }

    /// [`post`](Self::post) after [`pre_direct`](Self::pre_direct).
    #[inline]
    pub(super) fn post_direct<'a, T: Element>(
        &self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: DirectContext<'a, T, C::Device>,
    ) -> Result<()> {
        context.back.map_or(Ok(()), |back| self.send_home(scope, call, back))
    }

    /// Brings queries, keys and values inside.
    pub(super) fn pre<'a, T: Element>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> Result<(AttentionCall<'a, T, C::Device>, ReshardContext<'a, T, C::Device>)> {
        let (sharding, joint_keys, rank) = (self.sharding, self.joint_keys, self.group.rank());
        let (ulysses, outer) = sharding.place(rank);
        let signature = request.signature(self.name, sharding);
        let plans = self.plans.get(&signature, || Plans::new(sharding, rank, joint_keys, &request))?;
        let (heads, kv_heads) = (plans.heads.heads(ulysses), plans.heads.kv_heads(ulysses));

        let joint_tokens = request.joint_tokens();
        let joint_rows = portion(joint_tokens, sharding.outer, outer);
        let joint_kv = match request.joint {
            None => None,
            Some(joint) => Some(joint.kv.narrow(2, kv_heads.start, kv_heads.len())?),
        };
        // Joint keys that stand before the others, and how many.
        let (first, room) =
            (joint_kv.filter(|_| joint_keys == JointKeys::First), joint_keys.room(joint_tokens));
        let rows = joint_rows.len() + plans.query.part(outer).len();

        let [batch, _, _, head_dim] = request.query.shape();
        let exchanges = sharding.ulysses > 1;
        let exchanges_keys = exchanges && request.keys == KeyPlacement::Sharded;
        let mut query = match request.joint {
            None if !exchanges => None,
            joint => {
                let mut inside = scope.take([batch, rows, heads.len(), head_dim])?;
                if let Some(joint) = joint {
                    let mine = joint.query.narrow(1, joint_rows.start, joint_rows.len())?;
                    place(scope, &mut inside, 0, mine.narrow(2, heads.start, heads.len())?)?;
                    if !exchanges {
                        place(scope, &mut inside, joint_rows.len(), request.query)?;
                    }
                }
                Some(inside)
            }
        };
        let mut kv = None;
        if exchanges_keys || first.is_some() {
            let keys = match request.keys {
                KeyPlacement::Sharded => plans.key.part(outer).len(),
                KeyPlacement::Replicated => request.sequence.key,
            };
            let shape = [batch, room + keys, kv_heads.len(), head_dim];
            let (mut key, mut value) = (scope.take(shape)?, scope.take(shape)?);
            if let Some(joint) = first {
                place(scope, &mut key, 0, joint.key)?;
                place(scope, &mut value, 0, joint.value)?;
                if !exchanges_keys {
                    let others = request.kv.narrow(2, kv_heads.start, kv_heads.len())?;
                    place(scope, &mut key, room, others.key)?;
                    place(scope, &mut value, room, others.value)?;
                }
            }
            kv = Some((key, value));
        }
        if exchanges {
            self.scatter(
                scope,
                &signature,
                &plans,
                &request,
                query.as_mut(),
                kv.as_mut().filter(|_| exchanges_keys),
            )?;
        }

        let AttentionRequest { keys, sequence: _, mask, scale, out, lse, .. } = request;
        let kv = match kv {
            Some((key, value)) => KeyValue { key: key.into_view(), value: value.into_view() },
            None => request.kv.narrow(2, kv_heads.start, kv_heads.len())?,
        };
        let (query, back, (out, lse)) = match query {
            None => (request.query, None, (out, lse)),
            Some(query) => {
                let (home, scratch) = Home::keep(scope, signature, (out, lse), query.shape())?;
                let back = Back { home, plans: Arc::clone(&plans), joint: joint_tokens > 0 };
                (query.into_view(), Some(back), scratch)
            }
        };
        let mask =
            AttentionMask { dense: mask.dense.map(|dense| mask_heads(dense, &heads)).transpose()?, ..mask };
        let runs = plans.query.part(outer).runs().map(|(at, run)| Piece::tokens(joint_rows.len() + at, run));
        let frame = Frame {
            mask,
            query: plans.query,
            key: plans.key,
            keys,
            joint: (joint_tokens, signature.joint.1),
            outer,
            rows: Pieces::of(core::iter::once(Piece::joint(0, Run::of(joint_rows.clone()))).chain(runs)),
            batch,
        };
        let mask = match joint_keys {
            JointKeys::First => frame.call(scope, room, Run::of(0..signature.key[1]))?,
            // Whoever drives the kernel masks each block by itself.
            JointKeys::Apart => BlockMask::FULL,
        };
        let call = AttentionCall { query, kv, mask, scale, out, lse };
        let joint = joint_kv.filter(|_| joint_keys == JointKeys::Apart);
        Ok((call, ReshardContext { signature, plans, frame, joint, gather: None, back }))
    }

    /// Exchanges sequence for heads.
    fn scatter<T: Element>(
        &self,
        scope: Scope<'_, C::Device>,
        signature: &Signature,
        plans: &Plans,
        request: &AttentionRequest<'_, T, C::Device>,
        query: Option<&mut ViewMut<'_, T, C::Device>>,
        kv: Option<&mut (ViewMut<'_, T, C::Device>, ViewMut<'_, T, C::Device>)>,
    ) -> Result<()> {
        let group = self.ulysses.as_ref().unwrap_or(&self.group);
        let query =
            query.map(|to| Transfer::new(&plans.scatter_query, request.query, to.reborrow())).transpose()?;
        let (key, value) = match kv {
            None => (None, None),
            Some((key, value)) => (
                Some(Transfer::new(&plans.scatter_keys, request.kv.key, key.reborrow())?),
                Some(Transfer::new(&plans.scatter_keys, request.kv.value, value.reborrow())?),
            ),
        };
        match (query, key, value) {
            (Some(query), Some(key), Some(value)) if self.fuse_qkv => {
                group.exchange(scope, signature, &mut [query, key, value])?;
            }
            (query, key, value) => {
                for transfer in [query, key, value].into_iter().flatten() {
                    group.exchange(scope, signature, &mut [transfer])?;
                }
            }
        }
        self.settle(scope)
    }

    /// Brings outputs back.
    pub(super) fn post<'a, T: Element>(
        &self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        context: ReshardContext<'a, T, C::Device>,
    ) -> Result<()> {
        match context.back {
            Some(back) => self.send_home(scope, call, back),
            None => self.settle(scope),
        }
    }

    fn send_home<'a, T: Element>(
        &self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        Back { home, plans, joint }: Back<'a, T, C::Device>,
    ) -> Result<()> {
        // Joint rows go to everybody, the others to the ranks that exchange heads.
        let group = self.ulysses.as_ref().filter(|_| !joint).unwrap_or(&self.group);
        home.send(group, scope, &plans.home, call)?;
        self.settle(scope)
    }

    /// Waits for the queue, if the attribute asks for it.
    fn settle(&self, scope: Scope<'_, C::Device>) -> Result<()> {
        settle(self.use_sync, scope)
    }
}

/// The call of one rank without joint tokens.
#[inline]
fn alone<'a, T: Element, D: Device>(request: AttentionRequest<'a, T, D>) -> AttentionCall<'a, T, D> {
    let mask = request.block_mask();
    let AttentionRequest { query, kv, scale, out, lse, .. } = request;
    AttentionCall { query, kv, mask, scale, out, lse }
}

impl Plans {
    fn new<T: Element, D: Device>(
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
            KeyPlacement::Replicated => Sharding { split: attn_plan::Split::Uneven, ..sharding },
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
            key_lengths: (0..sharding.outer).map(|outer| key.part(outer).len()).collect(),
            scatter_query: ExchangePlan::default(),
            scatter_keys: ExchangePlan::default(),
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
            scatter.send(peer, [0, 0, its_heads.start, 0], [batch, seq_q, its_heads.len(), head_dim]);
            scatter.receive(
                peer,
                [0, my_rows + its_queries.start, 0, 0],
                [batch, its_queries.len(), heads.len(), head_dim],
            );
            if request.keys == KeyPlacement::Sharded {
                let scatter = &mut plans.scatter_keys;
                scatter.send(
                    peer,
                    [0, 0, its_kv_heads.start, 0],
                    [batch, seq_k, its_kv_heads.len(), head_dim],
                );
                scatter.receive(
                    peer,
                    [0, room + its_keys.start, 0, 0],
                    [batch, its_keys.len(), kv_heads.len(), head_dim],
                );
            }
            // The other way round.
            let to = if joint > 0 { its } else { peer };
            plans.home.send(
                to,
                [my_rows + its_queries.start, 0],
                [batch, its_queries.len(), heads.len(), head_dim],
            );
            plans.home.receive(
                to,
                [tokens_outside, its_heads.start],
                [batch, seq_q, its_heads.len(), head_dim],
            );
        }
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

/// Copies `part` to the positions from `start` on.
fn place<T: Element, D: Device>(
    scope: Scope<'_, D>,
    destination: &mut ViewMut<'_, T, D>,
    start: usize,
    part: View<'_, T, D>,
) -> Result<()> {
    let length = part.shape()[1];
    copy_tensor(scope, part, destination.reborrow().narrow(1, start, length)?)
}

/// A dense mask as some of the heads see it.
fn mask_heads<'a, D>(dense: View<'a, u8, D>, heads: &Range<usize>) -> Result<View<'a, u8, D>> {
    if dense.shape()[1] == 1 { Ok(dense) } else { dense.narrow(1, heads.start, heads.len()) }
}
