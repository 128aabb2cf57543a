//! One run: every rank its shard, and the shards put together.

use std::time::Instant;

use attn::prelude::*;
use attn::{KeyPlacement, Mask, Positions, Run as Stretch, SequenceLayout, TensorLayout};

use super::input::{Inputs, Loaded};
use super::masks::Masks;
use super::positions::PositionAxis;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::plan::Run;
use crate::ranks::{Ranks, Shard};
use crate::report::{Measured, Timing};

/// What is the same for all runs.
pub(super) struct Settings {
    pub(super) layout: TensorLayout,
    pub(super) mask: Mask,
    pub(super) keys: KeyPlacement,
    pub(super) joint: Option<JointStrategy>,
    pub(super) scale: Option<f32>,
    pub(super) lse: bool,
    pub(super) threads: Option<usize>,
}

/// Some positions of all results.
pub(super) struct Rows<T> {
    /// `[batch, seq, heads, head_dim]`, stored in the layout asked for.
    pub(super) out: Vec<T>,
    pub(super) shape: [usize; 4],
    /// `[batch, heads, seq]`; empty unless asked for.
    pub(super) lse: Vec<f32>,
}

/// What a run computed.
pub(super) struct Results<T> {
    pub(super) rows: Rows<T>,
    /// Of the joint tokens.
    pub(super) joint: Option<Rows<T>>,
}

/// Everything that ranks compute on, and how.
struct Call<'a, T, D: Machine> {
    inputs: &'a Inputs<T>,
    masks: &'a Masks<D>,
    /// Who has which queries.
    queries: SequenceLayout,
    run: Run,
    settings: &'a Settings,
}

/// Computes one run; the results are the reporter's alone.
///
/// # Errors
/// If a rank fails.
pub(super) fn run<A, R, D, T>(
    attention: &A,
    ranks: &R,
    run: Run,
    inputs: &Inputs<T>,
    masks: &Masks<D>,
    settings: &Settings,
) -> Result<Option<(Results<T>, Timing)>, Failure>
where
    A: ParallelAttention<R::Comm, T> + Sync,
    R: Ranks<D>,
    D: Machine,
    T: Element,
{
    let [batch, seq, heads, head_dim] = inputs.q.shape();
    let queries = run.sharding.sequence(seq).map_err(attn::Error::from)?;
    let call = Call { inputs, masks, queries, run, settings };
    let shards =
        ranks.run(run.ranks(), settings.threads, |comm| call.shard::<A, R::Comm>(attention, comm))?;
    let Some(shards) = shards else { return Ok(None) };
    let measured: Vec<Measured> = shards.iter().map(|shard| shard.measured).collect();
    let timing = Timing::of(&measured, shards.iter().map(|shard| shard.wall).max().unwrap_or_default());

    let joint_tokens = inputs.joint.as_ref().map_or(0, |[query, ..]| query.shape()[1]);
    let side = settings.joint.unwrap_or_default();
    let mut rows = Rows::zeros([batch, seq, heads, head_dim], settings.lse)?;
    for (rank, shard) in shards.iter().enumerate() {
        let positions = call.queries.positions(rank);
        let (_, first) = side.starts(joint_tokens, positions.len());
        rows.put(settings.layout, positions, shard, first);
    }
    // Every rank has the joint tokens' rows, bit by bit the same.
    let joint = match shards.first().filter(|_| joint_tokens > 0) {
        None => None,
        Some(shard) => {
            let mut rows = Rows::zeros([batch, joint_tokens, heads, head_dim], settings.lse)?;
            let (first, _) = side.starts(joint_tokens, call.queries.length(0));
            rows.put(settings.layout, Positions::from(Stretch::of(0..joint_tokens)), shard, first);
            Some(rows)
        }
    };
    Ok(Some((Results { rows, joint }, timing)))
}

impl<T: Element, D: Machine> Call<'_, T, D> {
    /// One rank's part.
    fn shard<A, C>(&self, attention: &A, comm: C) -> attn::Result<Shard<T>>
    where
        A: ParallelAttention<C, T>,
        C: Communicator<Device = D>,
    {
        let (settings, rank, queue) = (self.settings, comm.rank(), comm.queue()?);
        let tensors = self.tensors(rank, &queue)?;
        let whole = |tensor: &Loaded<T>| D::upload(&queue, tensor.whole()?);
        let joint = match &self.inputs.joint {
            None => None,
            Some([q, k, v]) => Some([whole(q)?, whole(k)?, whole(v)?]),
        };

        let start = Instant::now();
        let mut session = Session::open_with(comm, &self.run.config())?;
        session.measure_phases(true);
        let before = session.traffic();
        let [query, key, value] = tensors.each_ref().map(|tensor| tensor.view().permuted(settings.layout));
        let metadata = self.metadata(joint.as_ref());

        let [batch, tokens, heads, head_dim] = query.shape();
        let rows = metadata.joint_query.map_or(0, |joint| joint.shape()[1]) + tokens;
        let mut out = Tensor::zeros(&queue, settings.layout.permute([batch, rows, heads, head_dim]))?;
        let mut lse = Tensor::zeros(&queue, [if settings.lse { batch } else { 0 }, heads, rows, 1])?;
        let mut outputs = Outputs::new(out.view_mut().permuted(settings.layout));
        if settings.lse {
            outputs = outputs.with_lse(LseMut::from_view(lse.view_mut())?);
        }
        attention.attend_into(&mut session, query, key, value, &metadata, outputs)?;
        let (out, lse) = (D::download(&queue, out)?, D::download(&queue, lse)?);
        Ok(Shard { out, lse, measured: Measured::of(&session).since(before), wall: start.elapsed() })
    }

    /// A rank's queries, keys and values, stored in the layout asked for.
    fn tensors(&self, rank: usize, queue: &D::Queue) -> attn::Result<[Tensor<T, D>; 3]> {
        let Self { inputs: Inputs { q, k, v, .. }, queries, run, settings, .. } = self;
        let keys = k.shape()[1];
        let held = match settings.keys {
            KeyPlacement::Sharded => run.sharding.sequence(keys)?.positions(rank),
            KeyPlacement::Replicated => Positions::from(Stretch::of(0..keys)),
        };
        let gather = |tensor: &Loaded<T>, positions| D::upload(queue, tensor.gather(positions)?);
        Ok([gather(q, queries.positions(rank))?, gather(k, held)?, gather(v, held)?])
    }

    /// What the call carries besides queries, keys and values: the same on every rank.
    fn metadata<'a>(&'a self, joint: Option<&'a [Tensor<T, D>; 3]>) -> AttentionMetadata<'a, T, D> {
        let Self { inputs, settings, masks, .. } = self;
        let mut metadata = match joint {
            None => AttentionMetadata::default(),
            Some(joint) => {
                let [query, key, value] =
                    joint.each_ref().map(|tensor| tensor.view().permuted(settings.layout));
                AttentionMetadata::joint(query, key, value, settings.joint.unwrap_or_default())
            }
        };
        if self.run.sharding.split == Split::Uneven {
            metadata = metadata.with_sequence(inputs.q.shape()[1], inputs.k.shape()[1]);
        }
        metadata.span = Some(settings.mask.span);
        metadata.key_lengths = masks.key_lengths.as_deref();
        metadata.segments = masks.segments.as_deref().map(Segments::of);
        metadata.dense = masks.dense.as_ref().map(Tensor::view);
        metadata.keys = settings.keys;
        metadata.scale = settings.scale;
        metadata
    }
}

impl<T: Element> Rows<T> {
    fn zeros(shape: [usize; 4], lse: bool) -> attn::Result<Self> {
        let [batch, seq, heads, _] = shape;
        let out = vec![T::from_f32(0.0); attn::tensor::volume::<T>(shape)?];
        Ok(Self { out, shape, lse: vec![0.0; if lse { batch * heads * seq } else { 0 }] })
    }

    /// Puts positions of a shard, from its `first` on, where they belong.
    fn put(&mut self, layout: TensorLayout, positions: Positions, shard: &Shard<T>, first: usize) {
        let [batch, seq, heads, _] = self.shape;
        let out = PositionAxis::of(layout.permute(self.shape), layout.axes().1);
        out.scatter(&mut self.out, positions, (shard.out.as_slice(), first));
        if !self.lse.is_empty() {
            let lse = PositionAxis::of([batch, heads, seq], 2);
            lse.scatter(&mut self.lse, positions, (shard.lse.as_slice(), first));
        }
    }
}
