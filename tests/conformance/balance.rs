//! Who works how much under a causal mask.

use attn::Error;
use attn::prelude::*;

use crate::support::{Problem, Setup, WithFlash, attend, call, open, oracle, relative_error};

/// Blocks of queries and keys that each rank computed in a causal call, and that it skipped.
fn work(setup: Setup, seq: usize) -> Vec<(u64, u64)> {
    let inputs = Problem::new(1, seq, 2, 4).causal().inputs::<f32>(0);
    World::threads(setup.ranks())
        .run(|comm| {
            let mut session = open::<WithFlash, _, f32>(comm, setup)?;
            call(&mut session, &inputs)?;
            let work = session.work();
            Ok::<_, Error>((work.computed, work.skipped))
        })
        .unwrap()
}

/// What the busiest rank computes, in units of what a rank computes on average.
fn imbalance(setup: Setup, seq: usize) -> f64 {
    let computed: Vec<u64> = work(setup, seq).iter().map(|(computed, _)| *computed).collect();
    let mean = computed.iter().sum::<u64>() as f64 / computed.len() as f64;
    computed.iter().copied().max().unwrap() as f64 / mean
}

#[test]
fn contiguous_blocks_leave_the_last_rank_most_of_the_work() {
    let setup = Setup::ring(4);
    assert_eq!(work(setup, 64), [(1, 3), (2, 2), (3, 1), (4, 0)]);
    assert_eq!(imbalance(setup, 64), 1.6);
}

#[test]
fn zigzag_stretches_balance_the_work() {
    let setup = Setup::ring(4).layout(RingLayout::Zigzag);
    // Of 8 stretches, each rank's two of queries meet 9 of their 16.
    assert_eq!(work(setup, 64), [(9, 7); 4]);
    assert!(imbalance(setup, 64) <= 1.02);
}

#[test]
fn stripes_balance_the_work() {
    let setup = Setup::ring(4).layout(RingLayout::Striped);
    assert_eq!(work(setup, 64), [(4, 0); 4]);
    assert!(imbalance(setup, 64) <= 1.02);
    // Each block is half of a square, with or without its diagonal: pairs of queries and keys, too, are nearly as many.
    let layout = setup.sharding.sequence(1024).unwrap();
    let pairs = |rank: usize| layout.positions(rank).iter().map(|t| t + 1).sum::<usize>();
    let (most, all) = ((0..4).map(pairs).max().unwrap(), (0..4).map(pairs).sum::<usize>());
    assert!((4 * most) as f64 / all as f64 <= 1.02);
}

#[test]
fn rings_of_ulysses_ranks_are_balanced_alike() {
    assert_eq!(imbalance(Setup::hybrid(2, 4), 64), 1.6);
    for layout in [RingLayout::Zigzag, RingLayout::Striped] {
        assert!(imbalance(Setup::hybrid(2, 4).layout(layout), 64) <= 1.02);
    }
}

/// What is skipped is not missed.
#[test]
fn balanced_layouts_compute_the_same() {
    let inputs = Problem::new(1, 64, 2, 4).causal().inputs::<f32>(0);
    let exact = oracle(&inputs);
    for layout in RingLayout::ALL {
        let whole = attend::<WithFlash, _>(Setup::ring(4).layout(layout), &inputs).unwrap();
        assert!(relative_error(&whole.out, &exact.out) <= 2e-6);
    }
}
