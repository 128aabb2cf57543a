//! Every element comes where it belongs, and back: by coordinates, for equality.

use attn::RingLayout;
use attn::prelude::*;
use proptest::prelude::*;

use crate::cases::{Limits, cases};
use crate::probe::{Probed, ProbedHeadsFirst, ProbedSequenceFirst, check};
use crate::support::{Problem, Setup};

/// Query heads, and key and value heads: odd numbers of them, fewer than ranks, in groups of two and more.
const HEADS: [(usize, usize); 9] =
    [(1, 1), (3, 3), (7, 7), (8, 8), (8, 2), (12, 4), (15, 3), (14, 7), (24, 6)];

/// Lengths of queries, keys and joint tokens.
const LENGTHS: [(usize, usize, usize); 8] =
    [(1, 1, 0), (5, 13, 0), (8, 8, 3), (6, 12, 0), (19, 3, 1), (16, 16, 0), (7, 7, 9), (24, 14, 2)];

/// How many problems of all heads and lengths were checked.
fn check_all<A: ParallelAttention<attn::ThreadComm, f32>>(setup: Setup) -> usize {
    let mut checked = 0;
    for (n, (seq_q, seq_k, joint)) in LENGTHS.into_iter().enumerate() {
        for (m, (heads, kv_heads)) in HEADS.into_iter().enumerate() {
            let order = if (n + m) % 2 == 0 { JointStrategy::Front } else { JointStrategy::Rear };
            let problem =
                Problem::new(2, seq_q, heads, 3).seq_k(seq_k).kv_heads(kv_heads).joint(joint, order);
            if setup.takes(&problem) {
                check::<A>(setup, &problem, 0);
                checked += 1;
            }
        }
    }
    checked
}

#[test]
fn equal_shares_come_where_they_belong_and_back() {
    for ranks in 1..=8 {
        for setup in Setup::of_ranks(ranks) {
            check_all::<Probed>(setup);
            check::<Probed>(setup, &Problem::new(2, 2 * ranks, 3 * setup.sharding.ulysses, 3), 0);
        }
    }
}

#[test]
fn uneven_shares_come_where_they_belong_and_back() {
    for ranks in 1..=8 {
        for setup in Setup::of_ranks(ranks).into_iter().filter(|setup| *setup != Setup::NONE) {
            assert_eq!(check_all::<Probed>(setup.uneven()), HEADS.len() * LENGTHS.len());
        }
    }
}

#[test]
fn every_tensor_layout_comes_where_it_belongs_and_back() {
    for setup in [
        Setup::NONE,
        Setup::ulysses(3),
        Setup::ring(4).layout(RingLayout::Zigzag),
        Setup::hybrid(2, 2).layout(RingLayout::Striped),
        Setup::hybrid(3, 2).uneven(),
        Setup::allgather_kv(5).uneven(),
        Setup::ulysses_allgather(2, 3).uneven(),
    ] {
        assert!(check_all::<ProbedHeadsFirst>(setup) > 0);
        assert!(check_all::<ProbedSequenceFirst>(setup) > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1200, ..ProptestConfig::default() })]

    /// Masks are masks of the whole sequence, whatever part of it a kernel sees.
    #[test]
    fn every_query_attends_the_keys_that_the_masks_allow_and_no_others(case in cases(Limits::PROBE)) {
        check::<Probed>(case.setup, &case.problem, case.seed);
    }
}
