//! Which rank holds which positions and computes which heads, in numbers.

use attn::prelude::*;
use attn::{HeadLayout, Sharding};

use crate::support::Setup;

fn sharding(ulysses: usize, outer: usize, layout: RingLayout) -> Sharding {
    Setup::hybrid(ulysses, outer).layout(layout).sharding
}

#[track_caller]
fn check(ulysses: usize, ring: usize, layout: RingLayout, expected: &[&[usize]]) {
    let layout = sharding(ulysses, ring, layout).sequence(16).unwrap();
    let found: Vec<Vec<usize>> =
        (0..ulysses * ring).map(|rank| layout.positions(rank).iter().collect()).collect();
    assert_eq!(found, expected);
}

#[test]
fn zigzag_ranks_hold_a_stretch_from_the_front_and_one_from_the_back() {
    check(1, 4, RingLayout::Zigzag, &[&[0, 1, 14, 15], &[2, 3, 12, 13], &[4, 5, 10, 11], &[6, 7, 8, 9]]);
    check(2, 2, RingLayout::Zigzag, &[&[0, 1, 2, 3], &[12, 13, 14, 15], &[4, 5, 6, 7], &[8, 9, 10, 11]]);
    // Of eight tokens, numbered from 1.
    let layout = sharding(1, 2, RingLayout::Zigzag).sequence(8).unwrap();
    let tokens = |rank| layout.positions(rank).iter().map(|t| t + 1).collect::<Vec<_>>();
    assert_eq!([tokens(0), tokens(1)], [[1, 2, 7, 8], [3, 4, 5, 6]]);
}

#[test]
fn striped_ranks_hold_every_so_manyth_position() {
    check(1, 4, RingLayout::Striped, &[&[0, 4, 8, 12], &[1, 5, 9, 13], &[2, 6, 10, 14], &[3, 7, 11, 15]]);
    check(2, 2, RingLayout::Striped, &[&[0, 2, 4, 6], &[8, 10, 12, 14], &[1, 3, 5, 7], &[9, 11, 13, 15]]);
}

/// The order into which to bring stretches so that each rank's stand together, and the way back.
#[test]
fn zigzag_stretches_are_in_dual_chunk_order() {
    for (ring, there, back) in
        [(2, &[0, 3, 1, 2][..], &[0, 2, 3, 1][..]), (4, &[0, 7, 1, 6, 2, 5, 3, 4], &[0, 2, 4, 6, 7, 5, 3, 1])]
    {
        let layout = sharding(1, ring, RingLayout::Zigzag).sequence(2 * ring).unwrap();
        assert_eq!((layout.order(), layout.inverse_order()), (there.to_vec(), back.to_vec()));
        for rank in 0..ring {
            assert_eq!(layout.order()[2 * rank..][..2], [rank, 2 * ring - 1 - rank]);
        }
    }
}

/// What a session says is what its strategy does: the order of an uneven sequence, written out.
#[test]
fn uneven_shares_differ_by_one_at_most_and_may_be_empty() {
    let lengths = |setup: Setup, seq: usize| {
        let layout = setup.uneven().sharding.sequence(seq).unwrap();
        (0..setup.ranks()).map(|rank| layout.length(rank)).collect::<Vec<_>>()
    };
    assert_eq!(lengths(Setup::ulysses(8), 30), [4, 4, 4, 4, 4, 4, 3, 3]);
    assert_eq!(lengths(Setup::allgather_kv(4), 14), [4, 4, 3, 3]);
    assert_eq!(lengths(Setup::ring(4), 2), [1, 1, 0, 0]);
    assert_eq!(lengths(Setup::ring(4).layout(RingLayout::Striped), 7), [2, 2, 2, 1]);
    // Stretches of 2, 2, 1, 1, 1, 1, 1, 1.
    assert_eq!(lengths(Setup::ring(4).layout(RingLayout::Zigzag), 10), [3, 3, 2, 2]);
    // Rings of 7 and 6, each in two.
    assert_eq!(lengths(Setup::hybrid(2, 2), 13), [4, 3, 3, 3]);
    assert_eq!(lengths(Setup::hybrid(2, 2), 1), [1, 0, 0, 0]);
}

fn uneven_heads(ranks: usize, heads: usize, kv_heads: usize) -> Vec<usize> {
    let layout = HeadLayout::new(Split::Uneven, ranks, heads, kv_heads).unwrap();
    (0..ranks).map(|rank| layout.heads(rank).len()).collect()
}

#[test]
fn the_first_ranks_have_a_head_more() {
    assert_eq!(uneven_heads(8, 30, 30), [4, 4, 4, 4, 4, 4, 3, 3]);
    assert_eq!(uneven_heads(2, 7, 7), [4, 3]);
    assert_eq!(uneven_heads(4, 14, 14), [4, 4, 3, 3]);
    // Fewer heads than ranks.
    assert_eq!(uneven_heads(4, 3, 3), [1, 1, 1, 0]);
    // Groups stay together while there are as many of them as ranks.
    assert_eq!(uneven_heads(2, 28, 7), [16, 12]);
    assert_eq!(uneven_heads(4, 14, 7), [4, 4, 4, 2]);
    // Else heads are shared out, and a group goes to several ranks.
    assert_eq!(uneven_heads(8, 14, 2), [2, 2, 2, 2, 2, 2, 1, 1]);
}

/// Query heads `[a, b)` in groups of `g` need the key and value heads from `a / g`, rounded down, to `b / g`, rounded up:
/// no rank has more, so nothing is padded and nothing is sent that is not needed.
#[test]
fn ranks_have_the_key_heads_that_their_query_heads_need() {
    let splits = [Split::Strict, Split::Uneven];
    let shapes = (1..9).flat_map(|kv_heads: usize| (1..6).map(move |group: usize| (kv_heads, group)));
    for (ranks, (kv_heads, group)) in (1..9).flat_map(|ranks| shapes.clone().map(move |shape| (ranks, shape)))
    {
        for split in splits {
            let Ok(layout) = HeadLayout::new(split, ranks, kv_heads * group, kv_heads) else {
                assert_eq!(split, Split::Strict);
                continue;
            };
            let mut next = 0;
            for rank in 0..ranks {
                let (heads, kv) = (layout.heads(rank), layout.kv_heads(rank));
                assert_eq!(heads.start, next, "{layout:?}");
                next = heads.end;
                if !heads.is_empty() {
                    assert_eq!(kv, heads.start / group..heads.end.div_ceil(group), "{layout:?}");
                } else {
                    assert!(kv.is_empty(), "{layout:?}");
                }
                if split == Split::Strict && ranks.is_multiple_of(kv_heads) {
                    // Each of them goes to consecutive ranks.
                    let each = ranks / kv_heads;
                    assert_eq!(kv, rank / each..rank / each + 1, "{layout:?}");
                }
            }
            assert_eq!(next, kv_heads * group, "{layout:?}");
        }
    }
}
