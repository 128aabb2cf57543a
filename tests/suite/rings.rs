//! Blocks that go round.

use attn::prelude::*;
use attn::{KeyValue, TensorLayout};
use half::bf16;

use super::{Memory, Numbered, element, scoped, signature};

/// Shows every rank's block to every rank, and checks the order and each element.
fn rotate<T: Numbered + Element, C: Communicator>(
    comm: &C,
    call: usize,
    lengths: &[usize],
    [batch, heads, head_dim]: [usize; 3],
    layout: TensorLayout,
) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, ranks, queue) = (comm.rank(), comm.size(), comm.queue()?);
    let shape = |owner: usize| [batch, lengths[owner], heads, head_dim];
    let seeds = [100 + call as u64, 200 + call as u64];
    let tensor = |seed: u64| {
        let tensor = Tensor::from_fn(layout.permute(shape(rank)), |index| {
            element::<T>(seed, rank, layout.permute(index))
        });
        C::Device::upload(&queue, tensor?)
    };
    let (key, value) = (tensor(seeds[0])?, tensor(seeds[1])?);
    let block = KeyValue { key: key.view().permuted(layout), value: value.view().permuted(layout) };
    let mut signature = signature("ring", call);
    signature.dtype = T::DTYPE;
    let mut owners = Vec::new();
    let before = comm.traffic();
    scoped(comm, |scope| {
        comm.rotate(scope, &signature, lengths, block, |owner, block| {
            owners.push(owner);
            for (seed, view) in seeds.into_iter().zip([block.key, block.value]) {
                assert_eq!(view.shape(), shape(owner));
                let here = C::Device::download(&queue, view)?;
                let expected = Tensor::from_fn(shape(owner), |index| element::<T>(seed, owner, index))?;
                assert!(here.as_slice() == expected.as_slice(), "rank {owner}'s block, call {call}");
            }
            Ok(())
        })
    })?;
    let ring: Vec<usize> = (0..ranks).map(|hop| (rank + ranks - hop) % ranks).collect();
    assert_eq!(owners, ring);
    let elements = |owner: usize| shape(owner).iter().product::<usize>();
    let passed_on: usize =
        ring.iter().take(ranks - 1).map(|&owner| 2 * elements(owner) * size_of::<T>()).sum();
    let moved = comm.traffic() - before;
    assert_eq!((moved.sent, moved.collectives), (passed_on as u64, 1));
    Ok(())
}

/// Blocks of equal and of different lengths, dense and not, several rings one after the other.
pub(super) fn rings_show_every_block<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let ranks = comm.size();
    let equal = vec![5; ranks];
    let uneven: Vec<usize> = (0..ranks).map(|rank| (3 * rank + 1) % 5).collect();
    let mut call = 0;
    for lengths in [&equal, &uneven] {
        for layout in TensorLayout::ALL {
            rotate::<f32, C>(comm, call, lengths, [2, 3, 8], layout)?;
            rotate::<bf16, C>(comm, call + 1, lengths, [1, 2, 16], layout)?;
            call += 2;
        }
    }
    Ok(())
}

/// Blocks of length zero, all and some.
pub(super) fn rings_of_nothing<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let ranks = comm.size();
    rotate::<f32, C>(comm, 90, &vec![0; ranks], [1, 2, 8], TensorLayout::Bshd)?;
    let one: Vec<usize> = (0..ranks).map(|rank| usize::from(rank == ranks / 2) * 7).collect();
    rotate::<f32, C>(comm, 91, &one, [1, 2, 8], TensorLayout::Bshd)
}
