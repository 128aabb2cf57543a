//! More than fits any buffer on the way.

use attn::prelude::*;
use attn::{Cpu, ExchangePlan, Transfer};

use super::{Memory, element, scoped, signature};

/// Some megabytes from each rank to each, with rows that are not dense; then there and back by way of scratch memory.
pub(super) fn megabytes<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, ranks, queue) = (comm.rank(), comm.size(), comm.queue()?);
    let (rows, heads, dim) = (700, ranks, 333);
    let (mut plan, mut home) = (ExchangePlan::default(), ExchangePlan::default());
    for peer in 0..ranks {
        let part = [1, rows, 1, dim];
        plan.send(peer, [0, 0, peer, 0], part);
        plan.receive(peer, [0, peer * rows, 0, 0], part);
        home.send(peer, [0, peer * rows, 0, 0], part);
        home.receive(peer, [0, 0, peer, 0], part);
    }
    let from = Tensor::from_fn([1, rows, heads, dim], |index| element::<f32>(4, rank, index))?;
    let from = C::Device::upload(&queue, from)?;
    let mut to = Tensor::<f32, C::Device>::zeros(&queue, [1, ranks * rows, 1, dim])?;
    scoped(comm, |scope| {
        let transfer = Transfer::new(&plan, from.view(), to.view_mut())?;
        comm.exchange(scope, &signature("megabytes", 0), &mut [transfer])
    })?;
    let to = C::Device::download(&queue, to.view())?;
    for (n, found) in to.as_slice().iter().enumerate() {
        let (peer, row, d) = (n / dim / rows, n / dim % rows, n % dim);
        assert_eq!(*found, element::<f32>(4, peer, [0, row, rank, d]), "element {n}");
    }
    let mut back = Tensor::<f32, C::Device>::zeros(&queue, [1, rows, heads, dim])?;
    scoped(comm, |scope| {
        let mut scratch = scope.take::<f32>([1, ranks * rows, 1, dim])?;
        let transfer = Transfer::new(&plan, from.view(), scratch.reborrow())?;
        comm.exchange(scope, &signature("there", 1), &mut [transfer])?;
        let transfer = Transfer::new(&home, scratch.as_view(), back.view_mut())?;
        comm.exchange(scope, &signature("home", 1), &mut [transfer])
    })?;
    let [from, back] = [from, back].map(|tensor| C::Device::download(&queue, tensor.view()));
    assert!(from?.as_slice() == back?.as_slice(), "what came back is not what was sent");
    Ok(())
}

/// More than 2^31 bytes from rank 0 to the last rank, and a little back: what does not fit a C `int`.
pub fn more_than_an_int_can_count<C: Communicator<Device = Cpu>>(comm: &C) -> attn::Result<()> {
    const BYTES: usize = (1 << 31) + 12_345;
    let (rank, last, queue) = (comm.rank(), comm.size() - 1, comm.queue()?);
    let mut plan = ExchangePlan::default();
    if rank == 0 {
        plan.send(last, [0; 4], [1, 1, 1, BYTES]);
    }
    if rank == last {
        plan.receive(0, [0; 4], [1, 1, 1, BYTES]);
    }
    let length = |mine: bool| [1, 1, 1, if mine { BYTES } else { 1 }];
    let mut from = Tensor::<u8>::zeros(&queue, length(rank == 0))?;
    for (n, chunk) in from.as_mut_slice().chunks_mut(1 << 20).enumerate() {
        chunk.fill((n % 251) as u8);
    }
    let mut to = Tensor::<u8>::zeros(&queue, length(rank == last))?;
    scoped(comm, |scope| {
        let transfer = Transfer::new(&plan, from.view(), to.view_mut())?;
        comm.exchange(scope, &signature("large", 0), &mut [transfer])
    })?;
    if rank == last {
        let same = |(n, chunk): (usize, &[u8])| {
            let byte = (n % 251) as u8;
            chunk.first() == Some(&byte) && chunk.last() == Some(&byte) && chunk[chunk.len() / 2] == byte
        };
        assert!(to.as_slice().chunks(1 << 20).enumerate().all(same));
    }
    Ok(())
}
