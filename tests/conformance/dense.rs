//! Dense masks are global and in joined order: each rank takes the rows of its own queries, wherever they stand.

use attn::prelude::*;

use crate::probe::{Probed, coordinates};
use crate::support::{Problem, Setup, call, open};

/// For each output row of a rank, the row of the mask that it followed.
fn rows_followed(setup: Setup, problem: Problem, rank: usize) -> Vec<usize> {
    let mut inputs = coordinates(&problem, 0);
    let rows = problem.joint + problem.seq_q;
    // Row `i` attends the keys that the binary digits of `i + 1` name.
    let dense = Tensor::from_fn([1, 1, rows, rows], |[_, _, i, j]| (((i + 1) >> j) & 1) as u8).unwrap();
    inputs.dense = Some(dense);
    // Which bit stands for the key that stands at a place of the joint sequence.
    let (joint, others) = problem.order.starts(problem.joint, problem.seq_k);
    let bit_of = |place: usize| {
        if place >= joint && place < joint + problem.joint { 23 - (place - joint) } else { place - others }
    };
    let parts = World::threads(setup.ranks())
        .run(|comm| call(&mut open::<Probed, _, f32>(comm, setup)?, &inputs))
        .unwrap_or_else(|error| panic!("{setup}: {error}"));
    let followed = |bits: &f32| {
        let digits = (0..rows).filter(|place| ((*bits as u32) >> bit_of(*place)) & 1 == 1);
        digits.map(|place| 1 << place).sum::<usize>() - 1
    };
    parts[rank].1.iter().map(followed).collect()
}

/// Rows of a rank, as stretches: where each starts and ends among the rank's rows, and the mask's row that it starts at.
fn ranges(rows: &[usize]) -> Vec<(usize, usize, usize)> {
    let mut ranges: Vec<(usize, usize, usize)> = Vec::new();
    for (local, &row) in rows.iter().enumerate() {
        match ranges.last_mut() {
            Some((start, end, first)) if row == *first + (local - *start) => *end += 1,
            _ => ranges.push((local, local + 1, row)),
        }
    }
    ranges
}

const SETUPS: [Setup; 4] =
    [Setup::allgather_kv(2), Setup::ring(2), Setup::ulysses_allgather(1, 2), Setup::hybrid(1, 2)];

#[test]
fn front_rows_are_the_joint_ones_and_then_the_ranks_own() {
    for setup in SETUPS {
        let problem = Problem::new(1, 4, 1, 3).joint(1, JointStrategy::Front).dense(false);
        assert_eq!(ranges(&rows_followed(setup, problem, 0)), [(0, 3, 0)], "{setup}");
        assert_eq!(ranges(&rows_followed(setup, problem, 1)), [(0, 1, 0), (1, 3, 3)], "{setup}");
    }
}

#[test]
fn rear_rows_are_the_ranks_own_and_then_the_joint_ones() {
    for setup in SETUPS {
        let problem = Problem::new(1, 4, 1, 3).joint(2, JointStrategy::Rear).dense(false);
        assert_eq!(ranges(&rows_followed(setup, problem, 0)), [(0, 2, 0), (2, 4, 4)], "{setup}");
        assert_eq!(ranges(&rows_followed(setup, problem, 1)), [(0, 4, 2)], "{setup}");
    }
}

#[test]
fn rows_follow_their_positions_in_every_order() {
    let problem = Problem::new(1, 16, 1, 3).dense(false);
    let rows = |setup: Setup, rank: usize| rows_followed(setup, problem, rank);
    assert_eq!(rows(Setup::allgather_kv(4), 1), [4, 5, 6, 7]);
    assert_eq!(rows(Setup::ring(4).layout(RingLayout::Zigzag), 1), [2, 3, 12, 13]);
    assert_eq!(rows(Setup::ring(4).layout(RingLayout::Striped), 1), [1, 5, 9, 13]);
    assert_eq!(rows(Setup::ring(5).uneven(), 4), [13, 14, 15]);
}
