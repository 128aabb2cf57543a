//! From the caller's shards to what the kernel computes on, and back: what all strategies have in common.
//!
//! Ulysses ranks exchange sequence for heads: S. A. Jacobs et al., "DeepSpeed Ulysses: System Optimizations for Enabling
//! Training of Extreme Long Sequence Transformer Models", 2023, arXiv:2309.14509, section 3.1. Joint tokens, as dual-stream
//! transformers have them, are not exchanged: every rank has them all. Of their queries each rank computes its own heads
//! (among Ulysses ranks) and its own rows (among the others), and everybody gets them afterwards, so that each is computed
//! once; their keys are attended once, besides the others. Inside, joint tokens stand first, wherever they stand outside.

mod context;
mod edges;
mod plans;

pub use context::{DirectContext, ReshardContext};
pub(super) use plans::JointKeys;

use core::ops::Range;
use std::sync::Arc;

use attn_plan::{Run, Sharding, portion};

use self::context::Back;
use self::edges::{Batch, Packed};
use self::plans::Plans;

use crate::comm::{Communicator, ExchangePlan, Signature, Transfer};
use crate::device::{Device, Scope};
use crate::edges::Edges;
use crate::error::Result;
use crate::kernel::{AttentionCall, BlockMask};
use crate::metadata::{JointStrategy, KeyPlacement};
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
    edges: Batch,
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
        let (plans, edges) = (PlanCache::new(), Batch::default());
        Ok(Self { name, group, sharding, joint_keys, use_sync, fuse_qkv, plans, edges })
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

    /// [`pre`](Self::pre) for a kernel that is called once, on all keys. One rank without joint tokens and edges moves nothing.
    #[inline]
    pub(super) fn pre_direct<'a, T: Element>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> Result<(AttentionCall<'a, T, C::Device>, DirectContext<'a, T, C::Device>)> {
        let name = self.name;
        if self.sharding.ulysses == 1 && request.joint.is_none() && request.edges.is_none() {
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
        let kv_heads = plans.heads.kv_heads(ulysses);

        let joint_tokens = request.joint_tokens();
        let joint_rows = portion(joint_tokens, sharding.outer, outer);
        let edges = request.edges.copied().unwrap_or_default();
        self.edges.clear();
        let mut joint_kv = match request.joint {
            None => None,
            Some(joint) => Some(joint.kv.narrow(2, kv_heads.start, kv_heads.len())?),
        };
        // Joint keys that stand before the others.
        let first = joint_kv.filter(|_| joint_keys == JointKeys::First);
        if let (Some(kv), None, false) = (&mut joint_kv, first, edges.joint_key.is_none()) {
            let mut key = scope.take(kv.key.shape())?;
            self.edges.bring(scope, &edges.joint_key.heads(&kv_heads)?, kv.key, key.reborrow())?;
            kv.key = key.into_view();
        }
        let mut query = self.take_query(scope, &plans, &request, &edges, &joint_rows)?;
        let (mut key, mut value) = self.take_keys(scope, &plans, &request, &edges, first)?;
        // SAFETY: the tensors are those of the request, which are lent for the call, and scratch memory that was just taken,
        // each part for one copy; in the caller's outputs nothing is written.
        unsafe { self.edges.run(scope) }?;
        if sharding.ulysses > 1 {
            self.scatter(scope, &signature, &plans, &request, query.as_mut(), key.as_mut(), value.as_mut())?;
        } else if sharding.outer > 1 && request.keys == KeyPlacement::Replicated {
            // Nothing is to be moved, so nothing else would tell ranks that one of them calls differently.
            self.group.exchange(scope, &signature, &mut [])?;
        }

        let lands = self.lands(&request);
        let AttentionRequest { keys, mask, scale, out, lse, .. } = request;
        let own = request.kv.narrow(2, kv_heads.start, kv_heads.len())?;
        let kv = KeyValue {
            key: key.map_or(own.key, |key| key.tensor.into_view()),
            value: value.map_or(own.value, ViewMut::into_view),
        };
        let query = query.map_or(request.query, |query| query.tensor.into_view());
        let (back, (out, lse)) = if lands {
            (None, (out, lse))
        } else {
            let (home, scratch) = Home::keep(scope, signature, (out, lse), query.shape())?;
            (Some(Back { home, plans: Arc::clone(&plans) }), scratch)
        };
        let frame = self.frame(&signature, &plans, keys, mask)?;
        let mask = match joint_keys {
            JointKeys::First => frame.call(scope, joint_tokens, Run::of(0..signature.key[1]))?,
            // Whoever drives the kernel masks each block by itself.
            JointKeys::Apart => BlockMask::FULL,
        };
        let call = AttentionCall { query, kv, mask, scale, out, lse };
        let joint = joint_kv.filter(|_| joint_keys == JointKeys::Apart);
        Ok((call, ReshardContext { signature, plans, frame, joint, back }))
    }

    /// [`pre`](Self::pre) for who exchanges queries, keys and values by himself: these are the caller's still, on the first
    /// rank with the joint tokens before them. Masks and outputs are those of the heads inside.
    pub(super) fn pre_outside<'a, T: Element>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> Result<(AttentionCall<'a, T, C::Device>, Signature, DirectContext<'a, T, C::Device>)> {
        let (sharding, joint_keys, rank) = (self.sharding, self.joint_keys, self.group.rank());
        let (ulysses, outer) = sharding.place(rank);
        let signature = request.signature(self.name, sharding);
        let plans = self.plans.get(&signature, || Plans::new(sharding, rank, joint_keys, &request))?;
        let (joint_tokens, heads) = (request.joint_tokens(), plans.heads.heads(ulysses));
        let AttentionRequest { query, kv, keys, joint, mask, scale, out, lse, .. } = request;
        let (query, kv) = match joint {
            Some(joint) if rank == 0 => (
                before(scope, joint.query, query)?,
                KeyValue {
                    key: before(scope, joint.kv.key, kv.key)?,
                    value: before(scope, joint.kv.value, kv.value)?,
                },
            ),
            _ => (query, kv),
        };
        let rows = joint_tokens + plans.query.part(outer).len();
        let [batch, _, _, head_dim] = query.shape();
        let shape = [batch, rows, heads.len(), head_dim];
        let (home, (out, lse)) = Home::keep(scope, signature, (out, lse), shape)?;
        let back = Some(Back { home, plans: Arc::clone(&plans) });
        let frame = self.frame(&signature, &plans, keys, mask)?;
        let mask = frame.call(scope, joint_tokens, Run::of(0..signature.key[1]))?;
        let call = AttentionCall { query, kv, mask, scale, out, lse };
        Ok((call, signature, DirectContext { name: self.name, back }))
    }

    /// What this rank must know of the whole sequence.
    fn frame<'a>(
        &self,
        signature: &Signature,
        plans: &Plans,
        keys: KeyPlacement,
        mask: AttentionMask<'a, C::Device>,
    ) -> Result<Frame<'a, C::Device>> {
        let (ulysses, outer) = self.sharding.place(self.group.rank());
        let joint_rows = portion(signature.joint.0, self.sharding.outer, outer);
        let heads = plans.heads.heads(ulysses);
        let dense = mask.dense.map(|dense| mask_heads(dense, &heads)).transpose()?;
        let runs = plans.query.part(outer).runs().map(|(at, run)| Piece::tokens(joint_rows.len() + at, run));
        Ok(Frame {
            mask: AttentionMask { dense, ..mask },
            query: plans.query,
            key: plans.key,
            keys,
            joint: signature.joint,
            outer,
            rows: Pieces::of(core::iter::once(Piece::joint(0, Run::of(joint_rows.clone()))).chain(runs)),
            batch: signature.query[0],
        })
    }

    /// Whether the kernel's rows are the caller's, in the caller's order: then it writes them where they belong.
    fn lands<T: Element>(&self, request: &AttentionRequest<'_, T, C::Device>) -> bool {
        match request.joint {
            _ if self.sharding.ulysses > 1 => false,
            None => true,
            // One rank computes all joint rows, and they stand first inside.
            Some(joint) => self.sharding.outer == 1 && joint.order == JointStrategy::Front,
        }
    }

    /// Takes memory for the queries inside, with this rank's rows of joint tokens. None if the caller's are just those.
    fn take_query<'a, T: Element>(
        &mut self,
        scope: Scope<'a, C::Device>,
        plans: &Plans,
        request: &AttentionRequest<'_, T, C::Device>,
        edges: &Edges<'_, T, C::Device>,
        joint_rows: &Range<usize>,
    ) -> Result<Option<Inside<'a, T, C::Device>>> {
        let exchanges = self.sharding.ulysses > 1;
        if !exchanges && request.joint.is_none() && edges.query.is_none() {
            return Ok(None);
        }
        let (ulysses, outer) = self.sharding.place(self.group.rank());
        let heads = plans.heads.heads(ulysses);
        let own = plans.query.part(outer).len();
        let [batch, _, _, head_dim] = request.query.shape();
        let mut tensor = scope.take([batch, joint_rows.len() + own, heads.len(), head_dim])?;
        if let Some(joint) = request.joint {
            let mine = joint.query.narrow(1, joint_rows.start, joint_rows.len())?;
            let edge = edges.joint_query.rows(joint_rows)?.heads(&heads)?;
            let to = tensor.reborrow().narrow(1, 0, joint_rows.len())?;
            self.edges.bring(scope, &edge, mine.narrow(2, heads.start, heads.len())?, to)?;
        }
        let packed = if !exchanges {
            let to = tensor.reborrow().narrow(1, joint_rows.len(), own)?;
            self.edges.bring(scope, &edges.query, request.query, to)?;
            None
        } else if edges.query.is_none() {
            None
        } else {
            let plan = &plans.packed_query;
            Some(self.edges.pack(scope, plan, &edges.query, request.query, &mut tensor)?)
        };
        Ok(Some(Inside { tensor, packed }))
    }

    /// Takes memory for keys and for values inside, with those of joint tokens that stand before them. None for those of which
    /// the caller's, of this rank's heads, are just those.
    fn take_keys<'a, T: Element>(
        &mut self,
        scope: Scope<'a, C::Device>,
        plans: &Plans,
        request: &AttentionRequest<'_, T, C::Device>,
        edges: &Edges<'_, T, C::Device>,
        first: Option<KeyValue<'_, T, C::Device>>,
    ) -> Result<(Option<Inside<'a, T, C::Device>>, Option<ViewMut<'a, T, C::Device>>)> {
        let exchanged = self.exchanges(request.keys);
        let moved = exchanged || first.is_some();
        if !moved && edges.key.is_none() {
            return Ok((None, None));
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
        let mut key = scope.take(shape)?;
        let mut value = moved.then(|| scope.take(shape)).transpose()?;
        if let (Some(joint), Some(value)) = (first, &mut value) {
            let to = key.reborrow().narrow(1, 0, room)?;
            self.edges.bring(scope, &edges.joint_key.heads(&heads)?, joint.key, to)?;
            place(scope, value, 0, joint.value)?;
        }
        let packed = if !exchanged {
            let others = request.kv.narrow(2, heads.start, heads.len())?;
            let to = key.reborrow().narrow(1, room, keys)?;
            self.edges.bring(scope, &edges.key.heads(&heads)?, others.key, to)?;
            if let Some(value) = &mut value {
                place(scope, value, room, others.value)?;
            }
            None
        } else if edges.key.is_none() {
            None
        } else {
            Some(self.edges.pack(scope, &plans.packed_keys, &edges.key, request.kv.key, &mut key)?)
        };
        Ok((Some(Inside { tensor: key, packed }), value))
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
        query: Option<&mut Inside<'_, T, C::Device>>,
        key: Option<&mut Inside<'_, T, C::Device>>,
        value: Option<&mut ViewMut<'_, T, C::Device>>,
    ) -> Result<()> {
        let exchanged = self.exchanges(request.keys);
        let query = query
            .map(|to| to.transfer(&plans.scatter_query, &plans.packed_query, request.query))
            .transpose()?;
        let key = key
            .filter(|_| exchanged)
            .map(|to| to.transfer(&plans.scatter_keys, &plans.packed_keys, request.kv.key))
            .transpose()?;
        let value = value
            .filter(|_| exchanged)
            .map(|to| Transfer::new(&plans.scatter_keys, request.kv.value, to.reborrow()))
            .transpose()?;
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
    pub(super) fn settle(&self, scope: Scope<'_, C::Device>) -> Result<()> {
        if self.use_sync { C::Device::synchronize(scope.queue()) } else { Ok(()) }
    }
}

/// Memory inside for a tensor that is brought there.
struct Inside<'a, T, D> {
    tensor: ViewMut<'a, T, D>,
    /// What goes to others, where edges have packed it.
    packed: Option<View<'a, T, D>>,
}

impl<T: Element, D: Device> Inside<'_, T, D> {
    /// The exchange that brings `source` inside.
    fn transfer<'t>(
        &'t mut self,
        plan: &'t ExchangePlan,
        packed: &'t Packed,
        source: View<'t, T, D>,
    ) -> Result<Transfer<'t, D>> {
        match self.packed {
            None => Transfer::new(plan, source, self.tensor.reborrow()),
            Some(boxes) => Transfer::packed(&packed.exchange, boxes, self.tensor.reborrow()),
        }
    }
}

/// The call of one rank without joint tokens and edges.
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

/// Two stretches of rows in one tensor.
fn before<'a, T: Element, D: Device>(
    scope: Scope<'a, D>,
    first: View<'_, T, D>,
    others: View<'_, T, D>,
) -> Result<View<'a, T, D>> {
    let ([batch, room, heads, head_dim], rows) = (first.shape(), others.shape()[1]);
    let mut both = scope.take([batch, room + rows, heads, head_dim])?;
    place(scope, &mut both, 0, first)?;
    place(scope, &mut both, room, others)?;
    Ok(both.into_view())
}

/// A dense mask as some of the heads see it.
fn mask_heads<'a, D>(dense: View<'a, u8, D>, heads: &Range<usize>) -> Result<View<'a, u8, D>> {
    if dense.shape()[1] == 1 { Ok(dense) } else { dense.narrow(1, heads.start, heads.len()) }
}
