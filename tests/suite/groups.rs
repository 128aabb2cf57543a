//! Groups of some of the ranks.

use attn::prelude::*;
use attn::{ExchangePlan, Transfer};

use super::{Memory, scoped, signature};

/// Tells every rank a number, and learns theirs.
fn tell<C: Communicator>(comm: &C, law: &'static str, call: usize, number: usize) -> attn::Result<Vec<usize>>
where
    C::Device: Memory,
{
    let (ranks, queue) = (comm.size(), comm.queue()?);
    let mut plan = ExchangePlan::default();
    for peer in 0..ranks {
        plan.send(peer, [0; 4], [1; 4]);
        plan.receive(peer, [0, peer, 0, 0], [1; 4]);
    }
    let mine = C::Device::upload(&queue, Tensor::from_fn([1; 4], |_| number as i32)?)?;
    let mut all = Tensor::<i32, C::Device>::zeros(&queue, [1, ranks, 1, 1])?;
    scoped(comm, |scope| {
        let transfer = Transfer::new(&plan, mine.view(), all.view_mut())?;
        comm.exchange(scope, &signature(law, call), &mut [transfer])
    })?;
    let all = C::Device::download(&queue, all.view())?;
    Ok(all.as_slice().iter().map(|&number| number as usize).collect())
}

/// A rank's number is below the group's size, and no two have the same.
pub(super) fn ranks_are_numbered<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, ranks) = (comm.rank(), comm.size());
    assert!(rank < ranks);
    assert_eq!(tell(comm, "numbers", 0, rank)?, (0..ranks).collect::<Vec<_>>());
    Ok(())
}

/// By color, then by key, then by number.
pub(super) fn groups_by_color_ranks_by_key<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, ranks) = (comm.rank(), comm.size());
    let keys: [fn(usize) -> usize; 3] = [|rank| rank, |rank| 1000 - rank, |rank| rank / 2];
    for colors in 1..=3 {
        for (n, key) in keys.into_iter().enumerate() {
            let group = comm.split(rank % colors, key(rank))?;
            let mut members: Vec<usize> =
                (0..ranks).filter(|other| other % colors == rank % colors).collect();
            members.sort_by_key(|&member| (key(member), member));
            assert_eq!(group.size(), members.len());
            assert_eq!(members[group.rank()], rank);
            assert_eq!(tell(&group, "split", n, rank)?, members);
            // And once more of the group.
            let pair = group.split(group.rank() / 2, group.rank())?;
            let place = group.rank() / 2 * 2;
            let of_pair: Vec<usize> = members[place..members.len().min(place + 2)].to_vec();
            assert_eq!(tell(&pair, "split again", n, rank)?, of_pair);
        }
    }
    Ok(())
}

/// Calls in a group and in the whole, in turn, while other groups are elsewhere.
pub(super) fn groups_do_not_mix<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    let (rank, ranks) = (comm.rank(), comm.size());
    let halves = comm.split(rank * 2 / ranks.max(2), rank)?;
    let stripes = comm.split(rank % 2, rank)?;
    for call in 0..10 {
        let all = tell(comm, "all", call, 100 * call + rank)?;
        assert_eq!(all, (0..ranks).map(|peer| 100 * call + peer).collect::<Vec<_>>());
        // The first group makes more calls of its own than the others.
        for more in 0..=rank % 2 {
            let number = 1000 * call + 100 * more + rank;
            let stripe = tell(&stripes, "stripe", 10 * call + more, number)?;
            let expected = (0..ranks).filter(|peer| peer % 2 == rank % 2);
            assert_eq!(stripe, expected.map(|peer| number - rank + peer).collect::<Vec<_>>());
        }
        let half = tell(&halves, "half", call, rank)?;
        let same = |peer: &usize| peer * 2 / ranks.max(2) == rank * 2 / ranks.max(2);
        assert_eq!(half, (0..ranks).filter(same).collect::<Vec<_>>());
    }
    Ok(())
}

/// Groups are made and dropped without end.
pub(super) fn groups_come_and_go<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    for call in 0..20 {
        let group = comm.split((comm.rank() + call) % 2, 0)?;
        if call % 3 == 0 {
            tell(&group, "come", call, 0)?;
        }
    }
    tell(comm, "gone", 0, 0).map(drop)
}
