//! The ranks' results, brought to the reporter.

use std::time::Duration;

use attn::comm::Rendezvous;
use attn::device::Arena;
use attn::prelude::*;
use attn::{Device, Error, ExchangePlan, KeyPlacement, Mask, Sharding, Signature, Transfer};

use super::Shard;
use crate::machine::Machine;
use crate::report::Measured;

/// How many elements of a rank travel at a time: what communicators and devices hold besides the results is bounded.
const PART: usize = 4 << 20;

/// Gives rank 0 what all ranks have.
///
/// # Errors
/// If a rank fails, or the memory cannot be had.
pub(super) fn collect<D, C, T>(
    comm: &C,
    host: &impl Rendezvous,
    shard: Shard<T>,
) -> attn::Result<Option<Vec<Shard<T>>>>
where
    D: Machine,
    C: Communicator<Device = D>,
    T: Element,
{
    let records = host.gather("what a rank measured", &encode(&shard))?;
    let facts = records.iter().map(|record| decode(record)).collect::<attn::Result<Vec<_>>>()?;
    let shapes = |which: fn(&Facts) -> [usize; 4]| facts.iter().map(which).collect::<Vec<_>>();
    let outs = tensors::<D, C, T>(comm, "out", &shard.out, &shapes(|facts| facts.out))?;
    let lses = tensors::<D, C, f32>(comm, "lse", &shard.lse, &shapes(|facts| facts.lse))?;
    let (Some(outs), Some(lses)) = (outs, lses) else { return Ok(None) };
    let shards = outs.into_iter().zip(lses).zip(facts).map(|((out, lse), facts)| Shard {
        out,
        lse,
        measured: facts.measured,
        wall: facts.wall,
    });
    Ok(Some(shards.collect()))
}

/// What the others must know of a shard before they see its elements.
#[derive(Debug, PartialEq)]
struct Facts {
    out: [usize; 4],
    lse: [usize; 4],
    measured: Measured,
    wall: Duration,
}

fn encode<T: Element>(Shard { out, lse, measured, wall }: &Shard<T>) -> Vec<u8> {
    let shapes = out.shape().into_iter().chain(lse.shape()).map(|length| length as u64);
    let nanoseconds = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
    let words = shapes.chain(measured.to_words()).chain([nanoseconds]);
    words.flat_map(u64::to_le_bytes).collect()
}

fn decode(record: &[u8]) -> attn::Result<Facts> {
    let damaged = || Error::Configuration(String::from("ranks of unlike versions of this program"));
    let words: Vec<u64> = record.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let (shapes, rest) = words.split_at_checked(8).ok_or_else(damaged)?;
    let (measured, nanoseconds) =
        rest.split_last_chunk::<1>().map(|(rest, [last])| (rest, *last)).ok_or_else(damaged)?;
    let length = |at: usize| usize::try_from(shapes[at]).map_err(|_| damaged());
    Ok(Facts {
        out: [length(0)?, length(1)?, length(2)?, length(3)?],
        lse: [length(4)?, length(5)?, length(6)?, length(7)?],
        measured: Measured::from_words(measured).ok_or_else(damaged)?,
        wall: Duration::from_nanos(nanoseconds),
    })
}

/// Every rank's tensor, at rank 0: `shapes` are theirs.
fn tensors<D, C, T>(
    comm: &C,
    stage: &'static str,
    mine: &Tensor<T>,
    shapes: &[[usize; 4]],
) -> attn::Result<Option<Vec<Tensor<T>>>>
where
    D: Machine,
    C: Communicator<Device = D>,
    T: Element,
{
    let (rank, queue) = (comm.rank(), comm.queue()?);
    let lengths =
        shapes.iter().map(|shape| attn::tensor::volume::<T>(*shape)).collect::<attn::Result<Vec<_>>>()?;
    let mut collected = match rank {
        0 => lengths.iter().map(|length| reserve::<T>(*length)).collect::<attn::Result<Vec<_>>>()?,
        _ => Vec::new(),
    };
    let mut arena = Arena::<D>::default();
    for part in 0..lengths.iter().max().map_or(0, |longest| longest.div_ceil(PART)) {
        let first = part * PART;
        let here = |rank: usize| lengths[rank].saturating_sub(first).min(PART);
        let source = &mine.as_slice()[first.min(lengths[rank])..][..here(rank)];
        let source = D::upload(&queue, Tensor::from_slice(source, [1, 1, 1, source.len()])?)?;
        let mut plan = ExchangePlan::default();
        plan.send(0, [0; 4], [1, 1, 1, here(rank)]);
        let mut all = 0;
        if rank == 0 {
            for peer in 0..lengths.len() {
                plan.receive(peer, [0, 0, 0, all], [1, 1, 1, here(peer)]);
                all += here(peer);
            }
        }
        let mut destination = Tensor::<T, D>::zeros(&queue, [1, 1, 1, all])?;
        let transfer = Transfer::new(&plan, source.view(), destination.view_mut())?;
        comm.exchange(arena.open(&queue)?, &signature::<T>(stage, part, lengths.len()), &mut [transfer])?;
        let destination = D::download(&queue, destination)?;
        let mut rest = destination.as_slice();
        for (peer, elements) in collected.iter_mut().enumerate() {
            let (its, others) = rest.split_at(here(peer));
            elements.extend_from_slice(its);
            rest = others;
        }
    }
    if rank != 0 {
        return Ok(None);
    }
    let whole = collected.iter().zip(shapes).map(|(elements, shape)| Tensor::from_slice(elements, *shape));
    whole.collect::<attn::Result<Vec<_>>>().map(Some)
}

fn reserve<T>(length: usize) -> attn::Result<Vec<T>> {
    let mut elements = Vec::new();
    let bytes = length.saturating_mul(size_of::<T>());
    elements.try_reserve_exact(length).map_err(|_| Error::OutOfMemory { device: Cpu::NAME, bytes })?;
    Ok(elements)
}

/// By which the ranks know that they collect the same.
fn signature<T: Element>(stage: &'static str, part: usize, ranks: usize) -> Signature {
    Signature {
        strategy: "collect",
        stage,
        call: part as u64,
        dtype: T::DTYPE,
        query: [0; 4],
        key: [0; 4],
        keys: KeyPlacement::Sharded,
        joint: (0, JointStrategy::Front),
        sharding: Sharding { outer: ranks, ..Sharding::ONE },
        mask: Mask::NONE,
        digest: 0,
        scale_bits: 0,
        edges: 0,
        lse: false,
    }
}
