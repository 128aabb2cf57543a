//! Kernels of a user's own under every strategy of the crate, against dense attention in float64.

use attn::prelude::*;
use attn::{Error, Mask, ThreadComm};
use attn_extension_tests::kernels::{Online, SpanOnly, TwoPass};
use attn_extension_tests::problem::Problem;

#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = Online
)]
struct Everywhere;

#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = SpanOnly
)]
struct EverywhereBySpan;

/// A ring in this list would not compile: the kernel carries no state.
#[parallel_attention(strategy = ["none", "ulysses", "allgather_kv", "ulysses_allgather"], backend = TwoPass)]
struct WithoutRing;

/// How many ranks, and as what.
fn configurations() -> Vec<(usize, ParallelConfig)> {
    let named = |name: &str| ParallelConfig::strategy(name);
    let hybrid = |ulysses, ring| ParallelConfig {
        ulysses_degree: Some(ulysses),
        ring_degree: Some(ring),
        ..named("hybrid")
    };
    let gathering = |ulysses, allgather| ParallelConfig {
        ulysses_degree: Some(ulysses),
        allgather_degree: Some(allgather),
        ..named("ulysses_allgather")
    };
    let mut all = vec![
        (1, named("none")),
        (2, named("ulysses")),
        (4, named("ulysses")),
        (3, named("allgather_kv")),
        (4, gathering(2, 2)),
        (4, gathering(4, 1)),
        (3, gathering(1, 3)),
    ];
    for layout in RingLayout::ALL {
        for (ranks, config) in
            [(2, named("ring")), (3, named("ring")), (4, hybrid(2, 2)), (3, hybrid(1, 3)), (2, hybrid(2, 1))]
        {
            all.push((ranks, ParallelConfig { layout: Some(layout), ..config }));
        }
    }
    all
}

#[track_caller]
fn check<A>(name: &str, problem: &Problem, ranks: usize, config: &ParallelConfig)
where
    A: ParallelAttention<ThreadComm, f32>,
{
    let found = problem.on_ranks::<A>(ranks, config);
    let (found, _) = found.unwrap_or_else(|error| panic!("{name} on {ranks} ranks, {config:?}: {error}"));
    let distance = found.distance(&problem.dense_result().unwrap());
    assert!(distance < 1e-5, "{name} on {ranks} ranks, {config:?}: {distance}");
}

#[test]
fn a_kernel_that_carries_its_state_runs_under_every_strategy_and_mask() {
    for (ranks, config) in configurations() {
        for (name, problem) in Problem::new(24, 8, 4).with_each_mask() {
            check::<Everywhere>(name, &problem, ranks, &config);
        }
    }
}

#[test]
fn cross_attention_by_a_kernel_of_your_own_is_exact() {
    for (ranks, config) in configurations() {
        for (seq_q, seq_k) in [(12, 24), (24, 12)] {
            for replicated in [false, true] {
                let cross = Problem { seq_q, seq_k, replicated, ..Problem::new(0, 4, 4) };
                for (name, problem) in cross.with_each_mask() {
                    check::<Everywhere>(name, &problem, ranks, &config);
                }
            }
        }
    }
}

#[test]
fn an_uneven_split_gives_a_kernel_of_your_own_what_it_can_take() {
    for (ranks, config) in configurations() {
        let config = ParallelConfig { split: Some(Split::Uneven), ..config };
        for (seq, heads, kv_heads) in [(17, 6, 3), (2, 5, 5), (13, 12, 3), (7, 3, 1)] {
            let uneven = Problem { tell: true, ..Problem::new(seq, heads, kv_heads) };
            for (name, problem) in uneven.with_each_mask() {
                check::<Everywhere>(name, &problem, ranks, &config);
            }
        }
    }
}

#[test]
fn a_kernel_without_state_runs_where_it_is_called_once() {
    for (ranks, config) in configurations() {
        if !matches!(config.strategy.as_deref(), Some("ring" | "hybrid")) {
            for (name, problem) in Problem::new(24, 8, 4).with_each_mask() {
                check::<WithoutRing>(name, &problem, ranks, &config);
            }
        }
    }
}

#[test]
fn joint_tokens_reach_a_kernel_of_your_own_once() {
    for (ranks, config) in configurations() {
        for order in [JointStrategy::Front, JointStrategy::Rear] {
            let strict = Problem { joint: (5, order), ..Problem::new(24, 8, 4) };
            let uneven = Problem { joint: (5, order), tell: true, ..Problem::new(7, 6, 3) };
            let unevenly = ParallelConfig { split: Some(Split::Uneven), ..config.clone() };
            for (name, problem) in strict.with_each_mask() {
                check::<Everywhere>(name, &problem, ranks, &config);
            }
            for (name, problem) in uneven.with_each_mask() {
                check::<Everywhere>(name, &problem, ranks, &unevenly);
                check::<Everywhere>(name, &Problem { replicated: true, ..problem }, ranks, &unevenly);
            }
        }
    }
}

#[test]
fn a_kernel_that_says_nothing_of_masks_takes_those_by_position_and_no_other() {
    for (ranks, config) in configurations() {
        for (name, problem) in Problem::new(24, 8, 4).with_each_mask() {
            let mask = problem.mask();
            if mask == Mask::from(mask.span) {
                check::<EverywhereBySpan>(name, &problem, ranks, &config);
                continue;
            }
            for error in problem.refused_on::<EverywhereBySpan>(ranks, &config).unwrap() {
                assert!(
                    matches!(error, Error::MaskKind { mask: told, .. } if told == mask),
                    "{name}: {error}"
                );
            }
        }
    }
}
