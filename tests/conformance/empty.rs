//! Nothing to do: ranks without positions, without heads, without valid keys; rows that may attend nothing.

use attn::Error;
use attn::prelude::*;

use crate::support::{
    Inputs, Problem, Setup, Whole, WithFlash, WithSdpa, attend, lse_error, oracle, relative_error,
};

/// Every row against float64, under both kernels.
#[track_caller]
fn check(setup: Setup, inputs: &Inputs<f32>) -> Whole<f32> {
    let problem = inputs.problem;
    let exact = oracle(inputs);
    let near = |whole: &Whole<f32>| {
        let error = relative_error(&whole.rows(), &exact.rows());
        assert!(error <= 2e-6, "{setup}, {problem:?}: relative error {error:e}");
        let error = lse_error(&whole.all_lse(), &exact.all_lse());
        assert!(error <= 1e-5, "{setup}, {problem:?}: LSE is off by {error:e}");
    };
    let says = |error: Error| panic!("{setup}, {problem:?}: {error}");
    near(&attend::<WithSdpa, _>(setup, inputs).unwrap_or_else(says));
    let whole = attend::<WithFlash, _>(setup, inputs).unwrap_or_else(says);
    near(&whole);
    whole
}

/// Every setup on some numbers of ranks, uneven.
fn uneven(ranks: &[usize]) -> Vec<Setup> {
    let setups = ranks.iter().flat_map(|&ranks| Setup::of_ranks(ranks));
    setups.filter(|setup| *setup != Setup::NONE).map(Setup::uneven).collect()
}

#[test]
fn sequences_may_be_shorter_than_the_number_of_ranks() {
    for setup in uneven(&[3, 4, 8]) {
        for seq in [1, 2] {
            check(setup, &Problem::new(2, seq, 4, 4).kv_heads(2).inputs(seq as u64));
            check(setup, &Problem::new(1, seq, 3, 4).causal().seq_k(5).inputs(seq as u64));
            check(setup, &Problem::new(1, 6, 3, 4).causal().seq_k(seq).inputs(seq as u64));
            check(setup, &Problem::new(1, seq, 2, 4).joint(2, JointStrategy::Rear).inputs(seq as u64));
        }
    }
}

#[test]
fn heads_may_be_fewer_than_ranks() {
    for setup in uneven(&[4, 8]) {
        for (heads, kv_heads) in [(1, 1), (3, 3), (3, 1), (2, 2)] {
            check(setup, &Problem::new(1, 9, heads, 4).kv_heads(kv_heads).inputs(1));
            let joint = Problem::new(1, 9, heads, 4).kv_heads(kv_heads).joint(1, JointStrategy::Front);
            check(setup, &joint.inputs(2));
        }
    }
}

#[test]
fn one_rank_is_enough_for_every_strategy() {
    for setup in Setup::of_ranks(1) {
        for problem in [
            Problem::new(2, 6, 3, 4),
            Problem::new(1, 1, 1, 1),
            Problem::new(1, 6, 4, 4).kv_heads(1).causal().seq_k(9),
            Problem::new(1, 6, 3, 4).joint(5, JointStrategy::Rear).dense(true),
            Problem::new(2, 6, 2, 4).segments().key_lengths().window(2, 1),
            Problem::new(1, 6, 2, 4).seq_k(3).replicated_keys(),
        ] {
            check(setup, &problem.inputs(3));
            if setup != Setup::NONE {
                check(setup.uneven(), &problem.inputs(4));
            }
        }
    }
}

/// All valid keys lie in the first rank's block, or in none.
#[test]
fn blocks_may_hold_no_valid_key() {
    for setup in Setup::of_ranks(4) {
        let mut inputs = Problem::new(4, 16, 4, 4).key_lengths().inputs(5);
        inputs.key_lengths = Some(vec![3, 0, 16, 1]);
        let whole = check(setup, &inputs);
        let row = 16 * 4 * 4;
        assert!(
            whole.out[row..2 * row].iter().all(|x| x.to_bits() == 0),
            "{setup}: zeros, and positive ones"
        );
        assert!(whole.lse[64..128].iter().all(|x| *x == f32::NEG_INFINITY), "{setup}");
    }
}

#[test]
fn rows_that_may_attend_nothing_are_zero_and_their_sum_is_minus_infinity() {
    for setup in Setup::of_ranks(4) {
        for problem in [Problem::new(1, 16, 4, 4).dense(false), Problem::new(1, 16, 4, 4).dense(true)] {
            let mut inputs = problem.inputs(6);
            let heads = if problem.dense_per_head { 4 } else { 1 };
            // Rows 0, 5 and 15 attend nothing, others every key of their parity.
            let dense = |[_, _, i, j]: [usize; 4]| u8::from(![0, 5, 15].contains(&i) && (i + j) % 2 == 0);
            inputs.dense = Some(Tensor::from_fn([1, heads, 16, 16], dense).unwrap());
            let whole = check(setup, &inputs);
            for i in 0..16 {
                let nothing = [0, 5, 15].contains(&i);
                assert_eq!(whole.out[i * 16..][..16].iter().all(|x| *x == 0.0), nothing, "{setup}, row {i}");
                assert_eq!(whole.lse[i] == f32::NEG_INFINITY, nothing, "{setup}, row {i}");
            }
        }
        // Queries of a segment that no key has.
        let mut inputs = Problem::new(1, 16, 4, 4).segments().inputs(7);
        inputs.segments = Some([(0..16).map(|i| i % 3).collect(), (0..16).map(|i| i % 2).collect()]);
        let whole = check(setup, &inputs);
        assert!((0..16).all(|i| (whole.lse[i] == f32::NEG_INFINITY) == (i % 3 == 2)), "{setup}");
    }
}

/// Joint tensors without tokens are as good as none.
#[test]
fn joint_tensors_may_have_no_tokens() {
    for setup in [Setup::ulysses(2), Setup::ring(2), Setup::hybrid(2, 2).uneven(), Setup::allgather_kv(2)] {
        let bare = Problem::new(1, 8, 2, 4).causal().inputs::<f32>(8);
        let none = || Tensor::from_slice(&[], [1, 0, 2, 4]).unwrap();
        let joint = Inputs { joint: Some([none(), none(), none()]), ..bare.clone() };
        let [bare, joint] = [bare, joint].map(|inputs| attend::<WithFlash, _>(setup, &inputs).unwrap());
        assert_eq!(bare.bits(), joint.bits(), "{setup}");
    }
}
