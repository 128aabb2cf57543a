//! From the caller's shards to what the kernel computes on, and back: what all strategies have in common.
//!
//! Ulysses ranks exchange sequence for heads: S. A. Jacobs et al., "DeepSpeed Ulysses: System Optimizations for Enabling
//! Training of Extreme Long Sequence Transformer Models", 2023, arXiv:2309.14509, section 3.1. Joint tokens, as dual-stream
//! transformers have them, are not exchanged: every rank has them all. Of their queries each rank computes its own heads
//! (among Ulysses ranks) and its own rows (among the others), and everybody gets them afterwards, so that each is computed
//! once; their keys are attended once, besides the others. Inside, joint tokens stand first, wherever they stand outside.

mod context;
mod plans;

pub use context::{DirectContext, ReshardContext};
pub(super) use plans::JointKeys;

use core::ops::Range;
use std::sync::Arc;

use attn_plan::{Run, Sharding, portion};

use self::context::Back;
use self::plans::Plans;

use crate::comm::{Communicator, Signature, Transfer};
use crate::device::{Device, Scope};
use crate::error::Result;
use crate::kernel::{AttentionCall, BlockMask};
use crate::metadata::KeyPlacement;
use crate::spec::AttentionSpec;
use crate::strategy::frame::{Frame, Piece, Pieces};
use crate::strategy::home::{Home, PlanCache};
use crate::strategy::{AttentionMask, AttentionRequest};
use crate::tensor::{Element, KeyValue, View, ViewMut};

/// The exchange round a kernel.
#[derive(Debug)]
pub(super) struct Reshard<C> {
    name: &'static str,
    /// All ranks.
    group: C,
    sharding: Sharding,
    joint_keys: JointKeys,
    use_sync: bool,
    fuse_qkv: bool,
    plans: PlanCache<Plans>,
}

impl<C: Communicator> Reshard<C> {
    /// An exchange among all ranks of a group. All take part in each, also where neighbours alone have something to say to
    /// each other: so a rank that calls differently is known to everybody before anything moves.
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
        let AttentionSpec { use_sync, fuse_qkv, .. } = *spec;
        Ok(Self { name, group, sharding, joint_keys, use_sync, fuse_qkv, plans: PlanCache::new() })
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
        // Joint keys that stand before the others.
        let first = joint_kv.filter(|_| joint_keys == JointKeys::First);
        let mut query = self.take_query(scope, &plans, &request, &joint_rows)?;
        let mut kv = self.take_keys(scope, &plans, &request, first)?;
        if sharding.ulysses > 1 {
            self.scatter(scope, &signature, &plans, &request, query.as_mut(), kv.as_mut())?;
        } else if sharding.outer > 1 && request.keys == KeyPlacement::Replicated {
            // Nothing is to be moved, so nothing else would tell ranks that one of them calls differently.
            self.group.exchange(scope, &signature, &mut [])?;
        }

        let AttentionRequest { keys, mask, scale, out, lse, .. } = request;
        let kv = match kv {
            Some([key, value]) => KeyValue { key: key.into_view(), value: value.into_view() },
            None => request.kv.narrow(2, kv_heads.start, kv_heads.len())?,
        };
        let (query, back, (out, lse)) = match query {
            None => (request.query, None, (out, lse)),
            Some(query) => {
                let (home, scratch) = Home::keep(scope, signature, (out, lse), query.shape())?;
                let back = Back { home, plans: Arc::clone(&plans) };
                (query.into_view(), Some(back), scratch)
            }
        };
        let dense = mask.dense.map(|dense| mask_heads(dense, &heads)).transpose()?;
        let mask = AttentionMask { dense, ..mask };
        let runs = plans.query.part(outer).runs().map(|(at, run)| Piece::tokens(joint_rows.len() + at, run));
        let frame = Frame {
            mask,
            query: plans.query,
            key: plans.key,
            keys,
            joint: (joint_tokens, signature.joint.1),
            outer,
            rows: Pieces::of(core::iter::once(Piece::joint(0, Run::of(joint_rows.clone()))).chain(runs)),
            batch: signature.query[0],
        };
        let mask = match joint_keys {
            JointKeys::First => frame.call(scope, joint_tokens, Run::of(0..signature.key[1]))?,
            // Whoever drives the kernel masks each block by itself.
            JointKeys::Apart => BlockMask::FULL,
        };
        let call = AttentionCall { query, kv, mask, scale, out, lse };
        let joint = joint_kv.filter(|_| joint_keys == JointKeys::Apart);
        Ok((call, ReshardContext { signature, plans, frame, joint, back }))
    }

    /// Takes memory for the queries inside, with this rank's rows of joint tokens. None if the caller's are just those.
    fn take_query<'a, T: Element>(
        &self,
        scope: Scope<'a, C::Device>,
        plans: &Plans,
        request: &AttentionRequest<'_, T, C::Device>,
        joint_rows: &Range<usize>,
    ) -> Result<Option<ViewMut<'a, T, C::Device>>> {
        let exchanges = self.sharding.ulysses > 1;
        if !exchanges && request.joint.is_none() {
            return Ok(None);
        }
        let (ulysses, outer) = self.sharding.place(self.group.rank());
        let heads = plans.heads.heads(ulysses);
        let rows = joint_rows.len() + plans.query.part(outer).len();
        let [batch, _, _, head_dim] = request.query.shape();
        let mut inside = scope.take([batch, rows, heads.len(), head_dim])?;
        if let Some(joint) = request.joint {
            let mine = joint.query.narrow(1, joint_rows.start, joint_rows.len())?;
            place(scope, &mut inside, 0, mine.narrow(2, heads.start, heads.len())?)?;
            if !exchanges {
                place(scope, &mut inside, joint_rows.len(), request.query)?;
            }
        }
        Ok(Some(inside))
    }

    /// Takes memory for keys and values inside, with those of joint tokens that stand before them. None if the caller's,
    /// of this rank's heads, are just those.
    fn take_keys<'a, T: Element>(
        &self,
        scope: Scope<'a, C::Device>,
        plans: &Plans,
        request: &AttentionRequest<'_, T, C::Device>,
        first: Option<KeyValue<'_, T, C::Device>>,
    ) -> Result<Option<[ViewMut<'a, T, C::Device>; 2]>> {
        let exchanged = self.exchanges(request.keys);
        if !exchanged && first.is_none() {
            return Ok(None);
        }
        let (ulysses, outer) = self.sharding.place(self.group.rank());
        let heads = plans.heads.kv_heads(ulysses);
        let keys = match request.keys {
            KeyPlacement::Sharded => plans.key.part(outer).len(),
            KeyPlacement::Replicated => request.sequence.key,
        };
        let room = first.map_or(0, |joint| joint.key.shape()[1]);
        let [batch, _, _, head_dim] = request.kv.key.shape();
        let shape = [batch, room + keys, heads.len(), head_dim];
        let (mut key, mut value) = (scope.take(shape)?, scope.take(shape)?);
        if let Some(joint) = first {
            place(scope, &mut key, 0, joint.key)?;
            place(scope, &mut value, 0, joint.value)?;
            if !exchanged {
                let others = request.kv.narrow(2, heads.start, heads.len())?;
                place(scope, &mut key, room, others.key)?;
                place(scope, &mut value, room, others.value)?;
            }
        }
        Ok(Some([key, value]))
    }

    /// Whether keys are exchanged for heads.
    fn exchanges(&self, keys: KeyPlacement) -> bool {
        self.sharding.ulysses > 1 && keys == KeyPlacement::Sharded
    }

    /// Exchanges sequence for heads.
    fn scatter<T: Element>(
        &self,
        scope: Scope<'_, C::Device>,
        signature: &Signature,
        plans: &Plans,
        request: &AttentionRequest<'_, T, C::Device>,
        query: Option<&mut ViewMut<'_, T, C::Device>>,
        kv: Option<&mut [ViewMut<'_, T, C::Device>; 2]>,
    ) -> Result<()> {
        let query =
            query.map(|to| Transfer::new(&plans.scatter_query, request.query, to.reborrow())).transpose()?;
        let (key, value) = match kv.filter(|_| self.exchanges(request.keys)) {
            None => (None, None),
            Some([key, value]) => (
                Some(Transfer::new(&plans.scatter_keys, request.kv.key, key.reborrow())?),
                Some(Transfer::new(&plans.scatter_keys, request.kv.value, value.reborrow())?),
            ),
        };
        match (query, key, value) {
            (Some(query), Some(key), Some(value)) if self.fuse_qkv => {
                self.group.exchange(scope, signature, &mut [query, key, value])?;
            }
            (query, key, value) => {
                for transfer in [query, key, value].into_iter().flatten() {
                    self.group.exchange(scope, signature, &mut [transfer])?;
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
        Back { home, plans }: Back<'a, T, C::Device>,
    ) -> Result<()> {
        home.send(&self.group, scope, &plans.home, call)?;
        self.settle(scope)
    }

    /// Waits for the queue, if the attribute asks for it.
    fn settle(&self, scope: Scope<'_, C::Device>) -> Result<()> {
        if self.use_sync { C::Device::synchronize(scope.queue()) } else { Ok(()) }
    }
}

/// The call of one rank without joint tokens.
#[inline]
fn alone<'a, T: Element, D: Device>(request: AttentionRequest<'a, T, D>) -> AttentionCall<'a, T, D> {
    let mask = request.block_mask();
    let AttentionRequest { query, kv, scale, out, lse, .. } = request;
    AttentionCall { query, kv, mask, scale, out, lse }
}

/// Copies `part` to the positions from `start` on.
fn place<T: Element, D: Device>(
    scope: Scope<'_, D>,
    destination: &mut ViewMut<'_, T, D>,
    start: usize,
    part: View<'_, T, D>,
) -> Result<()> {
    let length = part.shape()[1];
    scope.copy(part, destination.reborrow().narrow(1, start, length)?)
}

/// A dense mask as some of the heads see it.
fn mask_heads<'a, D>(dense: View<'a, u8, D>, heads: &Range<usize>) -> Result<View<'a, u8, D>> {
    if dense.shape()[1] == 1 { Ok(dense) } else { dense.narrow(1, heads.start, heads.len()) }
}
