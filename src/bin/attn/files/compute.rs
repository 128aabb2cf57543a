//! One run: every rank its shard, and the shards put together.

use std::ops::Range;
use std::time::Instant;

use attn::prelude::*;
use attn::tensor::contiguous_strides;
use attn::{TensorLayout, ThreadComm};

use super::input::Inputs;
use crate::failure::Failure;
use crate::machine::{Machine, world};
use crate::plan::Run;
use crate::report::{Measured, Timing};

/// What is the same for all runs.
pub(super) struct Settings {
    pub(super) layout: TensorLayout,
    pub(super) mask: Mask,
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

/// What a rank computed: the joint tokens' positions and its own.
struct Shard<T> {
    out: Tensor<T>,
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
    inputs: &Inputs<T, D>,
    settings: &Settings,
) -> Result<(Results<T>, Timing), Failure>
where
    A: ParallelAttention<ThreadComm<D>, T> + Sync,
    D: Machine,
    T: Element,
{
    let world = world::<D>(D::queues(run.ranks, settings.threads)?);
    let config = ParallelConfig::strategy(run.strategy.name());
    let start = Instant::now();
    let shards =
        world.run(|comm| shard(attention, comm, &config, inputs, settings).map_err(Failure::from))?;
    let timing = Timing::of(shards.iter().map(|shard| shard.measured), start.elapsed());

    let [batch, seq, heads, head_dim] = inputs.q.shape();
    let tokens = seq / run.ranks;
    let joint_tokens = inputs.joint.as_ref().map_or(0, |[query, ..]| query.shape()[1]);
    let (joint_start, start) = settings.joint.unwrap_or_default().starts(joint_tokens, tokens);
    let mut rows = Rows::zeros([batch, seq, heads, head_dim], settings.lse)?;
    for (rank, shard) in shards.iter().enumerate() {
        rows.copy(settings.layout, rank * tokens, shard, start..start + tokens);
    }
    // Every rank has the joint tokens' rows, bit by bit the same.
    let joint = match shards.first().filter(|_| joint_tokens > 0) {
        None => None,
        Some(shard) => {
            let mut rows = Rows::zeros([batch, joint_tokens, heads, head_dim], settings.lse)?;
            rows.copy(settings.layout, 0, shard, joint_start..joint_start + joint_tokens);
            Some(rows)
        }
    };
    Ok((Results { rows, joint }, timing))
}

/// One rank's part.
fn shard<A, D, T>(
    attention: &A,
    comm: ThreadComm<D>,
    config: &ParallelConfig,
    inputs: &Inputs<T, D>,
    settings: &Settings,
) -> attn::Result<Shard<T>>
where
    A: ParallelAttention<ThreadComm<D>, T>,
    D: Machine,
    T: Element,
{
    let (rank, ranks) = (comm.rank(), comm.size());
    let mut session = Session::open_with(comm, config)?;
    session.measure_phases(true);
    let [query, key, value] = [&inputs.q, &inputs.k, &inputs.v].map(|tensor| tensor.shard(rank, ranks));
    let (query, key, value) = (query?, key?, value?);
    let mut metadata = match &inputs.joint {
        None => AttentionMetadata::default(),
        Some([query, key, value]) => {
            let side = settings.joint.unwrap_or_default();
            AttentionMetadata::joint(query.view(), key.view(), value.view(), side)
        }
    };
    metadata.mask = Some(settings.mask);
    metadata.scale = settings.scale;

    let [batch, tokens, heads, head_dim] = query.shape();
    let rows = metadata.joint_query.map_or(0, |joint| joint.shape()[1]) + tokens;
    let queue = session.queue().clone();
    let mut out = Tensor::zeros(&queue, [batch, rows, heads, head_dim])?;
    let mut lse = Tensor::zeros(&queue, [if settings.lse { batch } else { 0 }, heads, rows, 1])?;
    let mut outputs = Outputs::from(&mut out);
    if settings.lse {
        outputs = outputs.with_lse(LseMut::from_view(lse.view_mut())?);
    }
    attention.attend_into(&mut session, query, key, value, &metadata, outputs)?;
    let measured = Measured { phases: session.phases(), traffic: session.traffic() };
    Ok(Shard { out: D::download(&queue, out)?, lse: D::download(&queue, lse)?, measured })
}

impl<T: Element> Rows<T> {
    fn zeros(shape: [usize; 4], lse: bool) -> attn::Result<Self> {
        let [batch, seq, heads, _] = shape;
        let out = vec![T::from_f32(0.0); attn::tensor::volume::<T>(shape)?];
        Ok(Self { out, shape, lse: vec![0.0; if lse { batch * heads * seq } else { 0 }] })
    }

    /// Copies some of a shard's positions to the positions from `first` on.
    fn copy(&mut self, layout: TensorLayout, first: usize, shard: &Shard<T>, positions: Range<usize>) {
        let [batch, seq, heads, head_dim] = self.shape;
        let strides = layout.permute(contiguous_strides(layout.permute(self.shape)));
        let rows = shard.out.shape()[1];
        for b in 0..batch {
            for (to, from) in (first..).zip(positions.clone()) {
                for h in 0..heads {
                    let source =
                        &shard.out.as_slice()[((b * rows + from) * heads + h) * head_dim..][..head_dim];
                    let start = b * strides[0] + to * strides[1] + h * strides[2];
                    self.out[start..][..head_dim].copy_from_slice(source);
                    if !self.lse.is_empty() {
                        self.lse[(b * heads + h) * seq + to] =
                            shard.lse.as_slice()[(b * heads + h) * rows + from];
                    }
                }
            }
        }
    }
}
