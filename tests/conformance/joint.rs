//! Joint tokens: attended once and computed once, in front, at the rear, or as part of one sequence.

use attn::prelude::*;

use crate::support::{
    Inputs, Problem, Setup, WithFlash, WithSdpa, attend, lse_error, oracle, relative_error,
};

/// Every pair of degrees out of 1, 2 and 4 that makes at most eight ranks, under both strategies that have two.
fn grids() -> impl Iterator<Item = Setup> {
    let degrees = [1, 2, 4];
    let pairs = degrees.into_iter().flat_map(move |ulysses| degrees.map(|outer| (ulysses, outer)));
    pairs.filter(|(ulysses, outer)| ulysses * outer <= 8).flat_map(|(ulysses, outer)| {
        [Setup::hybrid(ulysses, outer), Setup::ulysses_allgather(ulysses, outer)]
    })
}

/// Every row against float64; that the joint ones are the same on all ranks, `attend` sees to.
#[track_caller]
fn check<A: ParallelAttention<attn::ThreadComm, f32>>(setup: Setup, inputs: &Inputs<f32>) {
    let problem = inputs.problem;
    let exact = oracle(inputs);
    let whole =
        attend::<A, f32>(setup, inputs).unwrap_or_else(|error| panic!("{setup}, {problem:?}: {error}"));
    let error = relative_error(&whole.rows(), &exact.rows());
    assert!(error <= 2e-6, "{setup}, {problem:?}: relative error {error:e}");
    let error = lse_error(&whole.all_lse(), &exact.all_lse());
    assert!(error <= 1e-5, "{setup}, {problem:?}: LSE is off by {error:e}");
}

fn problems() -> [Problem; 3] {
    let none = Problem::new(2, 32, 8, 8).kv_heads(4);
    // Seven do not divide among any number of ranks.
    [none, none.joint(7, JointStrategy::Front), none.joint(7, JointStrategy::Rear)]
}

#[test]
fn every_grid_computes_the_joint_sequence() {
    for (problem, seed) in problems().into_iter().zip(0..) {
        let inputs = problem.inputs(seed);
        for setup in grids() {
            check::<WithFlash>(setup, &inputs);
            check::<WithSdpa>(setup, &inputs);
        }
        for ranks in [1, 2, 4] {
            check::<WithFlash>(Setup::ulysses(ranks), &inputs);
            check::<WithFlash>(Setup::ring(ranks), &inputs);
            check::<WithFlash>(Setup::allgather_kv(ranks), &inputs);
        }
    }
}

#[test]
fn joint_tokens_go_with_every_ring_layout() {
    for (problem, seed) in problems().into_iter().zip(3..) {
        let inputs = problem.inputs(seed);
        for layout in [RingLayout::Zigzag, RingLayout::Striped] {
            for setup in grids().filter(Setup::has_ring) {
                check::<WithFlash>(setup.layout(layout), &inputs);
            }
        }
    }
}

/// Key lengths count the sharded keys alone; a dense mask is that of the joint sequence.
#[test]
fn joint_tokens_go_with_key_lengths_and_dense_masks() {
    for (problem, seed) in problems().into_iter().zip(6..) {
        for problem in [problem.key_lengths(), problem.dense(false), problem.dense(true).key_lengths()] {
            let inputs = problem.inputs(seed);
            for setup in grids() {
                check::<WithFlash>(setup, &inputs);
            }
            check::<WithSdpa>(Setup::hybrid(2, 2).layout(RingLayout::Zigzag), &inputs);
            check::<WithSdpa>(Setup::ulysses_allgather(2, 4), &inputs);
        }
    }
}

/// The same tokens as joint ones in front, at the rear, and as the first or last of one sequence.
#[test]
fn joint_tokens_are_as_good_as_any_others() {
    let (joint, seq) = (7, 25);
    let whole = Problem::new(2, joint + seq, 4, 8).inputs::<f32>(9);
    let part = |tensor: &Tensor<f32>, positions: std::ops::Range<usize>| {
        let [batch, _, heads, head_dim] = tensor.shape();
        let start = positions.start;
        Tensor::from_fn([batch, positions.len(), heads, head_dim], |[b, s, h, d]| {
            tensor.view().at([b, start + s, h, d])
        })
        .unwrap()
    };
    for setup in grids().map(Setup::uneven) {
        let one = attend::<WithFlash, _>(setup, &whole).unwrap();
        for (order, joint_at, others_at) in [
            (JointStrategy::Front, 0..joint, joint..joint + seq),
            (JointStrategy::Rear, seq..seq + joint, 0..seq),
        ] {
            let tensors = [&whole.query, &whole.key, &whole.value];
            let [query, key, value] = tensors.map(|tensor| part(tensor, others_at.clone()));
            let inputs = Inputs {
                joint: Some(tensors.map(|tensor| part(tensor, joint_at.clone()))),
                problem: Problem::new(2, seq, 4, 8).joint(joint, order),
                query,
                key,
                value,
                ..whole.clone()
            };
            let apart = attend::<WithFlash, _>(setup, &inputs).unwrap();
            let row = 4 * 8;
            let rows = |out: &[f32], seq: usize, at: std::ops::Range<usize>| -> Vec<f64> {
                let batches = out.chunks(seq * row);
                batches
                    .flat_map(|batch| &batch[at.start * row..at.end * row])
                    .map(|x| f64::from(*x))
                    .collect()
            };
            let as_joint = rows(&one.out, joint + seq, joint_at.clone());
            let as_others = rows(&one.out, joint + seq, others_at.clone());
            assert!(relative_error(&apart.joint, &as_joint) <= 2e-6, "{setup}, {order:?}");
            assert!(relative_error(&apart.out, &as_others) <= 2e-6, "{setup}, {order:?}");
        }
    }
}
