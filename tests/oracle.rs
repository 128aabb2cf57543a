//! Every strategy and kernel against dense attention in float64.

mod support;

use attn::{Element, JointStrategy, ParallelAttention, ThreadComm};
use half::{bf16, f16};
use support::{Problem, WithFlash, WithSdpa, attend, lse_error, oracle, relative_error};

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
    let all_rows: Vec<f64> = exact.out.iter().chain(&exact.joint).copied().collect();
    let mut one_rank = f64::INFINITY;
    for (strategy, ranks) in [
        ("none", 1),
        ("ulysses", 1),
        ("ulysses", 2),
        ("ulysses", 4),
        ("ring", 1),
        ("ring", 2),
        ("ring", 3),
        ("ring", 4),
        ("ring", 6),
    ] {
        let splits_heads = strategy == "ulysses";
        if splits_heads && attn_plan_refuses(&problem, ranks) {
            continue;
        }
        let whole = attend::<A, T>(strategy, ranks, &inputs)
            .unwrap_or_else(|error| panic!("{strategy} on {ranks} ranks, {problem:?}: {error}"));
        let rows: Vec<T> = whole.out.iter().chain(&whole.joint).copied().collect();
        let error = relative_error(&rows, &all_rows);
        if strategy == "none" {
            one_rank = error;
        }
        let says =
            format!("{strategy} on {ranks} ranks, {}, {problem:?}: relative error {error:e}", T::DTYPE);
        assert!(error <= bound, "{says}, bound {bound:e}");
        assert!(error <= factor * one_rank + slack, "{says}, one rank {one_rank:e}");
        assert!(lse_error(&whole.lse, &exact.lse) <= 1e-5, "{says}: LSE");
        assert!(lse_error(&whole.joint_lse, &exact.joint_lse) <= 1e-5, "{says}: joint LSE");
    }
}

fn attn_plan_refuses(problem: &Problem, ranks: usize) -> bool {
    let Problem { heads, kv_heads, .. } = *problem;
    !heads.is_multiple_of(ranks) || !(kv_heads.is_multiple_of(ranks) || ranks.is_multiple_of(kv_heads))
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
