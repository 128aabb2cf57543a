//! Which ranks form which groups: Ulysses ranks are neighbours, the ranks of a ring stand a Ulysses degree apart.

use attn::prelude::*;
use attn::{Error, Sharding};

use crate::communicator::{Event, Log, Witness};
use crate::support::{Problem, Setup, WithFlash, call, open};

/// Each group once, in order.
fn once(mut groups: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The groups that a strategy forms: those of ranks that exchange heads, and those that share the sequence, for which it
/// splits its group.
fn groups(setup: Setup) -> [Vec<Vec<usize>>; 2] {
    let (log, ranks) = (Log::default(), setup.ranks());
    let inputs = Problem::new(1, 4 * ranks, ranks, 4).inputs::<f32>(0);
    World::threads(ranks)
        .run(|comm| call(&mut open::<WithFlash, _, f32>(Witness::new(comm, &log), setup)?, &inputs))
        .unwrap_or_else(|error: Error| panic!("{setup}: {error}"));
    let (mut neighbours, mut colors) = (Vec::new(), Vec::new());
    for (rank, events) in log.by_rank().into_iter().enumerate() {
        for event in events {
            match event {
                Event::Split { color, key } => colors.push((color, key, rank)),
                Event::Exchange { stage, peers, .. } if stage != "gather" => neighbours.push(peers),
                Event::Exchange { .. } | Event::Rotate => {}
            }
        }
    }
    assert_eq!(colors.len(), ranks, "{setup} splits once");
    colors.sort_unstable();
    let rings = colors.chunk_by(|one, other| one.0 == other.0);
    let rings = rings.map(|ring| ring.iter().map(|(.., rank)| *rank).collect());
    [once(neighbours), rings.collect()]
}

#[test]
fn groups_are_those_of_the_tables() {
    type Table<'t> = &'t [&'t [usize]];
    let tables: [(usize, usize, Table<'_>, Table<'_>); 4] = [
        (2, 2, &[&[0, 1], &[2, 3]], &[&[0, 2], &[1, 3]]),
        (2, 4, &[&[0, 1], &[2, 3], &[4, 5], &[6, 7]], &[&[0, 2, 4, 6], &[1, 3, 5, 7]]),
        (4, 2, &[&[0, 1, 2, 3], &[4, 5, 6, 7]], &[&[0, 4], &[1, 5], &[2, 6], &[3, 7]]),
        (3, 2, &[&[0, 1, 2], &[3, 4, 5]], &[&[0, 3], &[1, 4], &[2, 5]]),
    ];
    for (ulysses, outer, neighbours, rings) in tables {
        for setup in [Setup::hybrid(ulysses, outer), Setup::ulysses_allgather(ulysses, outer)] {
            assert_eq!(groups(setup), [neighbours, rings], "{setup}");
            assert_eq!(groups(setup.uneven()), [neighbours, rings], "{setup}");
        }
        for layout in RingLayout::ALL {
            let setup = Setup::hybrid(ulysses, outer).layout(layout);
            assert_eq!(groups(setup), [neighbours, rings], "{setup}");
        }
        let sharding = Sharding { ulysses, outer, ..Sharding::ONE };
        for (r, group) in neighbours.iter().enumerate() {
            assert_eq!((0..ulysses).map(|u| sharding.rank(u, r)).collect::<Vec<_>>(), *group);
        }
        for (u, group) in rings.iter().enumerate() {
            assert_eq!((0..outer).map(|r| sharding.rank(u, r)).collect::<Vec<_>>(), *group);
        }
    }
}

#[test]
fn a_place_leads_back_to_its_rank() {
    for (ulysses, outer) in (1..9).flat_map(|u| (1..9).map(move |r| (u, r))) {
        let sharding = Sharding { ulysses, outer, ..Sharding::ONE };
        assert_eq!(sharding.ranks(), ulysses * outer);
        for rank in 0..sharding.ranks() {
            let (u, r) = sharding.place(rank);
            assert_eq!((u, r), (rank % ulysses, rank / ulysses));
            assert_eq!(sharding.rank(u, r), rank);
        }
    }
}

/// After the exchange, the ranks of one ring number hold one stretch of a contiguous sequence: this is why Ulysses ranks
/// are neighbours.
#[test]
fn ulysses_groups_hold_one_stretch_of_the_sequence() {
    for (ulysses, outer) in [(2, 2), (4, 2), (2, 4), (3, 2)] {
        let (seq, sharding) = (48, Sharding { ulysses, outer, ..Sharding::ONE });
        let layout = sharding.sequence(seq).unwrap();
        for r in 0..outer {
            let held = (0..ulysses).flat_map(|u| layout.positions(sharding.rank(u, r)).iter());
            assert_eq!(
                held.collect::<Vec<_>>(),
                (r * seq / outer..(r + 1) * seq / outer).collect::<Vec<_>>()
            );
        }
    }
}
