//! Every strategy and kernel against dense attention in float64.

mod support;

use attn::{Element, JointStrategy, ParallelAttention, RingLayout, ThreadComm};
use half::{bf16, f16};
use support::{Problem, Setup, WithFlash, WithSdpa, attend, lse_error, oracle, relative_error};

/// Every strategy, with some of its degrees, layouts and splits.
const SETUPS: [Setup; 16] = [
    Setup::NONE,
    Setup::ulysses(1),
    Setup::ulysses(2),
    Setup::ulysses(4),
    Setup::ring(1),
    Setup::ring(2),
    Setup::ring(3),
    Setup::ring(6).layout(RingLayout::Zigzag),
    Setup::ring(4).layout(RingLayout::Striped),
    Setup::hybrid(2, 2),
    Setup::hybrid(2, 3).layout(RingLayout::Zigzag),
    Setup::hybrid(4, 2).layout(RingLayout::Striped).uneven(),
    Setup::allgather_kv(3),
    Setup::allgather_kv(5).uneven(),
    Setup::ulysses_allgather(2, 2),
    Setup::ulysses_allgather(3, 2).uneven(),
];

/// What a run may be off by: an absolute bound on the relative error, and a factor over one rank's.
fn bounds<T: Element>() -> (f64, f64, f64) {
    match T::DTYPE.size() {
        4 => (1e-5, 2.5, 1e-6),
        _ if T::DTYPE == attn::DType::F16 => (8e-4, 1.3, 0.0),
        _ => (4e-3, 1.3, 0.0),
    }
}

#[track_caller]
fn check_all<A, T>(problem: Problem)
where
    A: ParallelAttention<ThreadComm, T>,
    T: Element,
{
    let inputs = problem.inputs::<T>(7);
    let exact = oracle(&inputs);
    let (bound, factor, slack) = bounds::<T>();
    let all_rows = exact.rows();
    let mut one_rank = f64::INFINITY;
    for setup in SETUPS.into_iter().filter(|setup| setup.takes(&problem)) {
        let whole =
            attend::<A, T>(setup, &inputs).unwrap_or_else(|error| panic!("{setup}, {problem:?}: {error}"));
        let error = relative_error(&whole.rows(), &all_rows);
        if setup == Setup::NONE {
            one_rank = error;
        }
        let says = format!("{setup}, {}, {problem:?}: relative error {error:e}", T::DTYPE);
        assert!(error <= bound, "{says}, bound {bound:e}");
        assert!(error <= factor * one_rank + slack, "{says}, one rank {one_rank:e}");
        assert!(lse_error(&whole.all_lse(), &exact.all_lse()) <= 1e-5, "{says}: LSE");
    }
}

#[track_caller]
fn check_types(problem: Problem) {
    check_all::<WithFlash, f32>(problem);
    check_all::<WithFlash, f16>(problem);
    check_all::<WithFlash, bf16>(problem);
    check_all::<WithSdpa, f32>(problem);
    check_all::<WithSdpa, f16>(problem);
    check_all::<WithSdpa, bf16>(problem);
}

#[test]
fn dense_attention_is_within_bounds() {
    check_types(Problem::new(2, 48, 4, 32));
}

#[test]
fn long_rows_cross_many_blocks() {
    check_types(Problem::new(1, 420, 4, 24));
}

#[test]
fn causal_attention_is_within_bounds() {
    check_types(Problem::new(2, 156, 4, 16).causal());
}

#[test]
fn causal_attention_ends_at_the_last_key() {
    check_types(Problem::new(1, 60, 4, 16).seq_k(132).causal());
}

#[test]
fn causal_queries_before_the_first_key_get_zeros() {
    check_types(Problem::new(1, 132, 4, 16).seq_k(60).causal());
}

#[test]
fn windows_slide_with_the_queries() {
    check_types(Problem::new(1, 156, 4, 16).window(20, 0));
    check_types(Problem::new(1, 72, 4, 16).seq_k(132).window(9, 30));
}

#[test]
fn padding_segments_and_dense_masks_are_within_bounds() {
    check_types(Problem::new(3, 84, 4, 16).key_lengths());
    check_types(Problem::new(2, 84, 4, 16).segments());
    check_types(Problem::new(2, 60, 4, 16).seq_k(84).dense(false));
    check_types(Problem::new(1, 72, 4, 16).kv_heads(2).dense(true).key_lengths().segments().causal());
}

#[test]
fn masks_go_with_joint_tokens() {
    check_types(Problem::new(2, 60, 4, 16).joint(5, JointStrategy::Front).key_lengths());
    check_types(Problem::new(1, 60, 4, 16).joint(9, JointStrategy::Rear).dense(true).key_lengths());
}

#[test]
fn replicated_keys_are_attended_once() {
    check_types(Problem::new(2, 60, 4, 16).seq_k(77).replicated_keys());
    check_types(Problem::new(1, 60, 4, 16).seq_k(31).replicated_keys().causal().key_lengths());
    check_types(Problem::new(1, 60, 4, 16).seq_k(7).replicated_keys().joint(3, JointStrategy::Front));
}

#[test]
fn grouped_queries_share_keys() {
    check_types(Problem::new(1, 72, 8, 16).kv_heads(2));
    check_types(Problem::new(1, 72, 8, 16).kv_heads(1).causal());
}

#[test]
fn cross_attention_has_lengths_of_its_own() {
    check_types(Problem::new(2, 24, 4, 16).seq_k(84));
}

#[test]
fn joint_tokens_stand_in_front() {
    check_types(Problem::new(2, 60, 4, 16).joint(7, JointStrategy::Front));
}

#[test]
fn joint_tokens_stand_at_the_rear() {
    check_types(Problem::new(1, 60, 8, 16).kv_heads(4).joint(1, JointStrategy::Rear));
    check_types(Problem::new(1, 12, 4, 16).joint(70, JointStrategy::Rear));
}

#[test]
fn odd_head_dims_are_fine() {
    for head_dim in [1, 3, 40, 130, 257] {
        check_types(Problem::new(1, 24, 4, head_dim));
    }
}
