//! One run: every rank its shard, and the shards put together.

use std::time::Instant;

use attn::prelude::*;
use attn::{Communicator, KeyPlacement, Mask, Positions, Run as Stretch, TensorLayout, ThreadComm};

use super::input::{Inputs, Loaded};
use super::masks::Masks;
use super::positions::PositionAxis;
use crate::failure::Failure;
use crate::machine::{Machine, world};
use crate::plan::Run;
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
    /// Each rank's queries, keys and values, stored in the layout asked for.
    shards: Vec<[Tensor<T, D>; 3]>,
    /// What all ranks have: queries, keys and values of the joint tokens.
    joint: Option<[Tensor<T, D>; 3]>,
    masks: &'a Masks<D>,
    /// The lengths of the whole sequences.
    sequence: [usize; 2],
    run: Run,
    settings: &'a Settings,
}

/// What a rank computed: the joint tokens' positions and its own.
struct Shard<T> {
    /// Stored in the layout asked for.
    out: Tensor<T>,
    /// `[batch, heads, positions, 1]`.
    lse: Tensor<f32>,
    measured: Measured,
}

/// Computes one run.
///
/// # Errors
/// If a rank fails.
pub(super) fn run<A, D, T>(
    attention: &A,
    run: Run,
    inputs: &Inputs<T>,
    masks: &Masks<D>,
    settings: &Settings,
) -> Result<(Results<T>, Timing), Failure>
where
    A: ParallelAttention<ThreadComm<D>, T> + Sync,
    D: Machine,
    T: Element,
{
    let queue = D::queue()?;
    let [batch, seq, heads, head_dim] = inputs.q.shape();
    let keys = inputs.k.shape()[1];
    let queries = run.sharding.sequence(seq).map_err(attn::Error::from)?;
    let held = |rank: usize| match settings.keys {
        KeyPlacement::Sharded => Ok(run.sharding.sequence(keys).map_err(attn::Error::from)?.positions(rank)),
        KeyPlacement::Replicated => Ok::<_, attn::Error>(Positions::from(Stretch::of(0..keys))),
    };
    let shard = |rank: usize| {
        let gather = |tensor: &Loaded<T>, positions| D::upload(&queue, tensor.gather(positions)?);
        let keys = held(rank)?;
        Ok([gather(&inputs.q, queries.positions(rank))?, gather(&inputs.k, keys)?, gather(&inputs.v, keys)?])
    };
    let whole = |tensor: &Loaded<T>| D::upload(&queue, tensor.whole()?);
    let joint = match &inputs.joint {
        None => None,
        Some([q, k, v]) => Some([whole(q)?, whole(k)?, whole(v)?]),
    };
    let shards = (0..run.ranks()).map(shard).collect::<attn::Result<_>>()?;
    let call = Call { shards, joint, masks, sequence: [seq, keys], run, settings };

    let world = world::<D>(D::queues(run.ranks(), settings.threads)?);
    let start = Instant::now();
    let shards = world.run(|comm| call.shard(attention, comm).map_err(Failure::from))?;
    let measured: Vec<Measured> = shards.iter().map(|shard| shard.measured).collect();
    let timing = Timing::of(&measured, start.elapsed());

    let joint_tokens = inputs.joint.as_ref().map_or(0, |[query, ..]| query.shape()[1]);
    let side = settings.joint.unwrap_or_default();
    let mut rows = Rows::zeros([batch, seq, heads, head_dim], settings.lse)?;
    for (rank, shard) in shards.iter().enumerate() {
        let positions = queries.positions(rank);
        let (_, first) = side.starts(joint_tokens, positions.len());
        rows.put(settings.layout, positions, shard, first);
    }
    // Every rank has the joint tokens' rows, bit by bit the same.
    let joint = match shards.first().filter(|_| joint_tokens > 0) {
        None => None,
        Some(shard) => {
            let mut rows = Rows::zeros([batch, joint_tokens, heads, head_dim], settings.lse)?;
            let (first, _) = side.starts(joint_tokens, queries.length(0));
            rows.put(settings.layout, Positions::from(Stretch::of(0..joint_tokens)), shard, first);
            Some(rows)
        }
    };
    Ok((Results { rows, joint }, timing))
}

impl<T: Element, D: Machine> Call<'_, T, D> {
    /// One rank's part.
    fn shard<A>(&self, attention: &A, comm: ThreadComm<D>) -> attn::Result<Shard<T>>
    where
        A: ParallelAttention<ThreadComm<D>, T>,
    {
        let (settings, rank) = (self.settings, comm.rank());
        let mut session = Session::open_with(comm, &self.run.config())?;
        session.measure_phases(true);
        let [query, key, value] =
            self.shards[rank].each_ref().map(|tensor| tensor.view().permuted(settings.layout));
        let metadata = self.metadata();

        let [batch, tokens, heads, head_dim] = query.shape();
        let rows = metadata.joint_query.map_or(0, |joint| joint.shape()[1]) + tokens;
        let queue = session.queue().clone();
        let mut out = Tensor::zeros(&queue, settings.layout.permute([batch, rows, heads, head_dim]))?;
        let mut lse = Tensor::zeros(&queue, [if settings.lse { batch } else { 0 }, heads, rows, 1])?;
        let mut outputs = Outputs::new(out.view_mut().permuted(settings.layout));
        if settings.lse {
            outputs = outputs.with_lse(LseMut::from_view(lse.view_mut())?);
        }
        attention.attend_into(&mut session, query, key, value, &metadata, outputs)?;
        let measured = Measured::of(&session);
        Ok(Shard { out: D::download(&queue, out)?, lse: D::download(&queue, lse)?, measured })
    }

    /// What the call carries besides queries, keys and values: the same on every rank.
    fn metadata(&self) -> AttentionMetadata<'_, T, D> {
        let Self { settings, masks, sequence: [seq_q, seq_k], .. } = self;
        let mut metadata = match &self.joint {
            None => AttentionMetadata::default(),
            Some(joint) => {
                let [query, key, value] =
                    joint.each_ref().map(|tensor| tensor.view().permuted(settings.layout));
                AttentionMetadata::joint(query, key, value, settings.joint.unwrap_or_default())
            }
        };
        if self.run.sharding.split == Split::Uneven {
            metadata = metadata.with_sequence(*seq_q, *seq_k);
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
