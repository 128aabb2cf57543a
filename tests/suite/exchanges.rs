//! Boxes go where their plans say.

use std::time::Duration;

use attn::prelude::*;
use attn::{ExchangePlan, Transfer};
use half::bf16;

use super::plans::Exchange;
use super::{Memory, Numbered, element, scoped, signature};
use crate::support::Random;

/// One exchange of a tensor.
fn exchange<T: Numbered, C: Communicator>(
    comm: &C,
    law: &'static str,
    call: usize,
    exchange: &Exchange,
) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, queue) = (comm.rank(), comm.queue()?);
    let plan = exchange.plan(rank);
    let source = C::Device::upload(&queue, exchange.source::<T>(rank)?)?;
    let mut destination = C::Device::upload(&queue, exchange.untouched::<T>(rank)?)?;
    scoped(comm, |scope| {
        let to = destination.view_mut().permuted(exchange.layouts[1]);
        let transfer = Transfer::new(&plan, source.view().permuted(exchange.layouts[0]), to)?;
        comm.exchange(scope, &signature(law, call), &mut [transfer])
    })?;
    exchange.check(rank, &C::Device::download(&queue, destination.view())?)
}

/// Any boxes, elements of every size, tensors in every layout, alone and several at once.
pub(super) fn random_exchanges_are_exact<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let law = "random";
    let (rank, ranks, queue) = (comm.rank(), comm.size(), comm.queue()?);
    let mut random = Random(40 + ranks as u64);
    for call in 0..12 {
        let one = Exchange::random(&mut random, ranks);
        match call % 4 {
            0 => exchange::<u8, C>(comm, law, call, &one)?,
            1 => exchange::<bf16, C>(comm, law, call, &one)?,
            2 => exchange::<i32, C>(comm, law, call, &one)?,
            _ => exchange::<f32, C>(comm, law, call, &one)?,
        }
    }
    for call in 12..18 {
        let [a, b, c] = [(); 3].map(|()| Exchange::random(&mut random, ranks));
        let plans = [&a, &b, &c].map(|exchange| exchange.plan(rank));
        let from_a = C::Device::upload(&queue, a.source::<f32>(rank)?)?;
        let from_b = C::Device::upload(&queue, b.source::<bf16>(rank)?)?;
        let from_c = C::Device::upload(&queue, c.source::<u8>(rank)?)?;
        let mut to_a = C::Device::upload(&queue, a.untouched::<f32>(rank)?)?;
        let mut to_b = C::Device::upload(&queue, b.untouched::<bf16>(rank)?)?;
        let mut to_c = C::Device::upload(&queue, c.untouched::<u8>(rank)?)?;
        scoped(comm, |scope| {
            let mut transfers = [
                Transfer::new(
                    &plans[0],
                    from_a.view().permuted(a.layouts[0]),
                    to_a.view_mut().permuted(a.layouts[1]),
                )?,
                Transfer::new(
                    &plans[1],
                    from_b.view().permuted(b.layouts[0]),
                    to_b.view_mut().permuted(b.layouts[1]),
                )?,
                Transfer::new(
                    &plans[2],
                    from_c.view().permuted(c.layouts[0]),
                    to_c.view_mut().permuted(c.layouts[1]),
                )?,
            ];
            comm.exchange(scope, &signature(law, call), &mut transfers)
        })?;
        a.check(rank, &C::Device::download(&queue, to_a.view())?)?;
        b.check(rank, &C::Device::download(&queue, to_b.view())?)?;
        c.check(rank, &C::Device::download(&queue, to_c.view())?)?;
    }
    Ok(())
}

/// How many rows rank `from` has for rank `to`.
const fn rows(from: usize, to: usize) -> usize {
    (3 * from + 5 * to) % 4
}

/// Rank p sends rank r as many rows as the two agree on, among them none; they come in the order of ranks.
pub(super) fn uneven_all_to_all<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, ranks, queue) = (comm.rank(), comm.size(), comm.queue()?);
    let (mut plan, mut sent, mut received) = (ExchangePlan::default(), 0, 0);
    for peer in 0..ranks {
        plan.send(peer, [0, sent, 0, 0], [1, rows(rank, peer), 2, 8]);
        plan.receive(peer, [0, received, 0, 0], [1, rows(peer, rank), 2, 8]);
        sent += rows(rank, peer);
        received += rows(peer, rank);
    }
    let from = Tensor::from_fn([1, sent, 2, 8], |index| element::<f32>(1, rank, index))?;
    let from = C::Device::upload(&queue, from)?;
    let mut to = Tensor::<f32, C::Device>::zeros(&queue, [1, received, 2, 8])?;
    scoped(comm, |scope| {
        let transfer = Transfer::new(&plan, from.view(), to.view_mut())?;
        comm.exchange(scope, &signature("all-to-all", 0), &mut [transfer])
    })?;
    let to = C::Device::download(&queue, to.view())?;
    let mut row = 0;
    for peer in 0..ranks {
        let before: usize = (0..rank).map(|other| rows(peer, other)).sum();
        for n in 0..rows(peer, rank) {
            for h in 0..2 {
                for d in 0..8 {
                    let expected = element::<f32>(1, peer, [0, before + n, h, d]);
                    assert_eq!(to.view().at([0, row, h, d]), expected, "row {n} of rank {peer}");
                }
            }
            row += 1;
        }
    }
    Ok(())
}

/// Every rank's rows, on every rank: rank r has r of them.
pub(super) fn all_gather<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, ranks, queue) = (comm.rank(), comm.size(), comm.queue()?);
    let mut plan = ExchangePlan::default();
    for peer in 0..ranks {
        plan.send(peer, [0; 4], [2, rank, 1, 4]);
        plan.receive(peer, [0, peer * peer.saturating_sub(1) / 2, 0, 0], [2, peer, 1, 4]);
    }
    let from = Tensor::from_fn([2, rank, 1, 4], |index| element::<bf16>(2, rank, index))?;
    let from = C::Device::upload(&queue, from)?;
    let all = ranks * (ranks - 1) / 2;
    let mut to = Tensor::<bf16, C::Device>::zeros(&queue, [2, all, 1, 4])?;
    scoped(comm, |scope| {
        let transfer = Transfer::new(&plan, from.view(), to.view_mut())?;
        comm.exchange(scope, &signature("all-gather", 0), &mut [transfer])
    })?;
    let to = C::Device::download(&queue, to.view())?;
    for peer in 0..ranks {
        for row in 0..peer {
            let at = peer * (peer - 1) / 2 + row;
            for b in 0..2 {
                for d in 0..4 {
                    assert_eq!(to.view().at([b, at, 0, d]), element(2, peer, [b, row, 0, d]));
                }
            }
        }
    }
    Ok(())
}

/// No tensors, plans without boxes, and boxes without elements.
pub(super) fn nothing<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, queue) = (comm.rank(), comm.queue()?);
    scoped(comm, |scope| comm.exchange(scope, &signature("nothing", 0), &mut []))?;
    let mut empty = ExchangePlan::default();
    for peer in 0..comm.size() {
        empty.send(peer, [0, peer, 0, 0], [1, 0, 3, 4]);
        empty.receive(peer, [0, 0, 0, 0], [1, 0, 3, 4]);
    }
    for (call, plan) in [ExchangePlan::default(), empty].into_iter().enumerate() {
        let from = Tensor::from_fn([1, comm.size(), 3, 4], |index| element::<f32>(3, rank, index))?;
        let from = C::Device::upload(&queue, from)?;
        let mut to = C::Device::upload(&queue, Tensor::from_fn([1, 2, 3, 4], |_| 5.0_f32)?)?;
        scoped(comm, |scope| {
            let transfer = Transfer::new(&plan, from.view(), to.view_mut())?;
            comm.exchange(scope, &signature("nothing", 1 + call), &mut [transfer])
        })?;
        let to = C::Device::download(&queue, to.view())?;
        assert!(to.as_slice().iter().all(|&x| x == 5.0), "something came");
    }
    Ok(())
}

/// Each call gets its own data, though ranks come at different times and nothing stands between the calls.
pub(super) fn calls_in_a_row_do_not_mix<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, ranks) = (comm.rank(), comm.size());
    let mut random = Random(50 + ranks as u64);
    let mut own = Random(rank as u64);
    for call in 0..24 {
        let one = Exchange::random(&mut random, ranks);
        if own.below(8) == 0 {
            std::thread::sleep(Duration::from_millis(own.below(4) as u64));
        }
        exchange::<f32, C>(comm, "row", call, &one)?;
    }
    Ok(())
}

/// What is sent to others is counted in bytes, what stays is not; each exchange is one collective.
pub(super) fn traffic_is_counted<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, ranks) = (comm.rank(), comm.size());
    let mut random = Random(60 + ranks as u64);
    for call in 0..3 {
        let one = Exchange::random(&mut random, ranks);
        let before = comm.traffic();
        exchange::<bf16, C>(comm, "traffic", call, &one)?;
        let moved = comm.traffic() - before;
        assert_eq!((moved.sent, moved.collectives), (2 * one.sent(rank) as u64, 1));
    }
    Ok(())
}
