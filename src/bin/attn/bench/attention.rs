//! Attention itself, whole and in its phases.

use std::time::Duration;

use attn::ThreadComm;
use attn::device::Arena;
use attn::prelude::*;

use super::SIGNATURE;
use super::problem::Problem;
use super::row::{Row, Work};
use super::times::Times;
use crate::failure::Failure;
use crate::machine::{Machine, world};
use crate::plan::Run;
use crate::random::positions;

/// What one rank measured.
struct Measured<D: Machine> {
    /// Of each call of the first runs, when it began and ended.
    calls: Vec<[D::Moment; 2]>,
    /// Of each call of the second, how long its parts took: pre, kernel and post.
    phases: Vec<[Duration; 3]>,
    /// Bytes sent to other ranks in one call.
    bytes: u64,
}

/// Measures one strategy on one number of ranks.
///
/// # Errors
/// If a rank fails.
pub(super) fn rows<D, A, T>(attention: &A, run: Run, problem: &Problem) -> Result<Vec<Row>, Failure>
where
    D: Machine,
    A: ParallelAttention<ThreadComm<D>, T> + Sync,
    T: Element,
{
    let queues = D::queues(run.ranks(), problem.threads)?;
    let ranks = world::<D>(queues).run(|comm| measure(attention, comm, run, problem))?;

    // All ranks start together, so the first start is the common one.
    let call = |number: usize| -> attn::Result<f64> {
        let mut longest = f64::NEG_INFINITY;
        for [start, _] in ranks.iter().map(|rank| &rank.calls[number]) {
            for [_, end] in ranks.iter().map(|rank| &rank.calls[number]) {
                longest = longest.max(D::milliseconds(start, end)?);
            }
        }
        Ok(longest)
    };
    let calls = (0..problem.runs).map(call).collect::<attn::Result<Vec<f64>>>()?;
    let phase = |part: usize| {
        let slowest =
            |number: usize| ranks.iter().map(|rank| rank.phases[number][part]).max().unwrap_or_default();
        Times::of((0..problem.runs).map(|number| slowest(number).as_secs_f64() * 1e3).collect())
    };
    let attended = Work::Operations(problem.operations());
    let row = |name, times, work, floor_ms| Row {
        name,
        run: Some(run),
        ranks: run.ranks(),
        times,
        work,
        floor_ms,
        bytes_per_rank: None,
    };
    let bytes = ranks.iter().map(|rank| rank.bytes).max();
    Ok(vec![
        Row { bytes_per_rank: bytes, ..row("attention", Times::of(calls), attended, problem.floor_ms()) },
        row("pre", phase(0), Work::Unknown, None),
        row("kernel", phase(1), attended, problem.floor_ms()),
        row("post", phase(2), Work::Unknown, None),
    ])
}

/// One rank's part. Everything that a steady call does not do comes before the first measurement.
fn measure<D, A, T>(
    attention: &A,
    comm: ThreadComm<D>,
    run: Run,
    problem: &Problem,
) -> attn::Result<Measured<D>>
where
    D: Machine,
    A: ParallelAttention<ThreadComm<D>, T>,
    T: Element,
{
    let (rank, group) = (comm.rank(), comm.clone());
    let mut session = Session::<A, _, T>::open_with(comm, &run.config())?;
    let queue = session.queue().clone();
    // Whose positions these are makes no difference to how long it takes: a rank's are as many as it should have.
    let shard = |stream, whole: [usize; 4]| {
        let held = run.sharding.sequence(whole[1])?.length(rank);
        D::upload(&queue, positions::<T>(stream, whole, 0, held)?)
    };
    let (query, key, value) = (shard(1, problem.query)?, shard(2, problem.key)?, shard(3, problem.key)?);
    let mut out = Tensor::zeros(&queue, query.shape())?;
    let mut metadata = AttentionMetadata::default().with_span(problem.span);
    if run.sharding.split == Split::Uneven {
        metadata = metadata.with_sequence(problem.query[1], problem.key[1]);
    }
    let mut arena = Arena::default();
    let mut attend = |session: &mut Session<A, _, T>| {
        attention.attend_into(session, &query, &key, &value, &metadata, &mut out)
    };

    for _ in 0..problem.warmup {
        attend(&mut session)?;
    }
    let before = session.traffic();
    let mut calls = Vec::with_capacity(problem.runs);
    for _ in 0..problem.runs {
        meet(&group, &mut arena, &queue)?;
        let start = D::moment(&queue)?;
        attend(&mut session)?;
        calls.push([start, D::moment(&queue)?]);
    }
    let bytes = (session.traffic() - before).sent / problem.runs as u64;

    session.measure_phases(true);
    let mut phases = Vec::with_capacity(problem.runs);
    for _ in 0..problem.runs {
        meet(&group, &mut arena, &queue)?;
        let before = session.phases();
        attend(&mut session)?;
        let after = session.phases();
        phases.push([after.pre - before.pre, after.kernel - before.kernel, after.post - before.post]);
    }
    D::synchronize(&queue)?;
    Ok(Measured { calls, phases, bytes })
}

/// Returns when all ranks have come: an exchange of nothing.
fn meet<D: Machine>(group: &ThreadComm<D>, arena: &mut Arena<D>, queue: &D::Queue) -> attn::Result<()> {
    group.exchange(arena.open(queue)?, &SIGNATURE, &mut [])
}
