//! What must hold whatever the numbers are.

mod support;

use attn::prelude::*;
use attn::{Error, JointStrategy};
use half::{bf16, f16};
use proptest::prelude::*;
use support::{
    Inputs, Problem, Setup, Whole, WithFlash, WithSdpa, attend, attend_on, open, oracle, relative_error,
};

/// Layouts other than the default.
#[parallel_attention(strategy = ["none", "ulysses", "ring", "hybrid"], scatter = 1, gather = 2)]
struct HeadsFirst;

#[parallel_attention(strategy = ["none", "ulysses", "ring", "hybrid"], scatter = 2, gather = 0)]
struct SequenceFirst;

/// A problem that every strategy takes on `ranks` ranks.
fn problems() -> impl Strategy<Value = (Problem, usize, u64)> {
    let shape = (1_usize..3, 1_usize..20, 1_usize..20, 1_usize..4, 1_usize..4, 1_usize..24);
    (shape, 1_usize..5, 0_usize..6, any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |((batch, q, k, group, kv, head_dim), ranks, joint, rear, causal, seed)| {
            let order = if rear { JointStrategy::Rear } else { JointStrategy::Front };
            // Half of the problems have fewer key heads than ranks.
            let kv_heads = if seed % 2 == 0 { kv * ranks } else { 1 };
            let heads = if seed % 2 == 0 { kv_heads * group } else { ranks * group };
            let mut problem =
                Problem::new(batch, q * ranks, heads, head_dim).kv_heads(kv_heads).seq_k(k * ranks);
            if causal && joint == 0 {
                problem = problem.causal();
            }
            (problem.joint(joint, order), ranks, seed)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// The exchange moves elements and changes none, so Ulysses does the very sums that one rank does.
    #[test]
    fn ulysses_equals_one_rank_to_the_bit((problem, ranks, seed) in problems()) {
        let inputs = problem.inputs::<bf16>(seed);
        let one = attend::<WithFlash, _>(Setup::NONE, &inputs).unwrap();
        let many = attend::<WithFlash, _>(Setup::ulysses(ranks), &inputs).unwrap();
        prop_assert_eq!(one, many, "{:?} on {} ranks", problem, ranks);
    }

    #[test]
    fn ring_equals_one_rank_up_to_rounding((problem, ranks, seed) in problems()) {
        let inputs = problem.inputs::<f32>(seed);
        let exact = oracle(&inputs);
        let many = attend::<WithFlash, _>(Setup::ring(ranks), &inputs).unwrap();
        prop_assert!(relative_error(&many.out, &exact.out) < 5e-6, "{:?} on {} ranks", problem, ranks);
        prop_assert!(relative_error(&many.joint, &exact.joint) < 5e-6, "{:?} on {} ranks", problem, ranks);
    }

    #[test]
    fn both_kernels_compute_the_same((problem, ranks, seed) in problems()) {
        let inputs = problem.inputs::<f32>(seed);
        let flash = attend::<WithFlash, _>(Setup::ring(ranks), &inputs).unwrap();
        let plain = attend::<WithSdpa, _>(Setup::ring(ranks), &inputs).unwrap();
        let plain: Vec<f64> = plain.out.iter().map(|x| f64::from(*x)).collect();
        prop_assert!(relative_error(&flash.out, &plain) < 5e-6, "{:?} on {} ranks", problem, ranks);
    }

    #[test]
    fn layouts_differ_in_strides_alone((problem, ranks, seed) in problems()) {
        let inputs = problem.inputs::<f16>(seed);
        for setup in [Setup::ulysses(ranks), Setup::ring(ranks)] {
            let batch_first = attend::<WithFlash, _>(setup, &inputs).unwrap();
            prop_assert_eq!(&batch_first, &attend::<HeadsFirst, _>(setup, &inputs).unwrap());
            prop_assert_eq!(&batch_first, &attend::<SequenceFirst, _>(setup, &inputs).unwrap());
        }
    }
}

/// Sums run in an order that the inputs alone decide.
#[test]
fn results_do_not_depend_on_threads_or_timing() {
    let inputs = Problem::new(2, 192, 4, 32).causal().inputs::<f32>(3);
    for setup in [
        Setup::NONE,
        Setup::ulysses(2),
        Setup::ring(3),
        Setup::hybrid(2, 2).layout(RingLayout::Zigzag),
        Setup::ulysses_allgather(2, 3),
    ] {
        let first = attend::<WithFlash, _>(setup, &inputs).unwrap();
        for threads in 1..4 {
            let world = World::threads(setup.ranks()).threads_per_rank(threads);
            assert_eq!(first, attend_on::<WithFlash, _>(world, setup, &inputs).unwrap(), "{setup}");
        }
    }
}

/// Every strategy, with degrees that divide what is computed below.
const SOME: [Setup; 9] = [
    Setup::NONE,
    Setup::ulysses(2),
    Setup::ring(1),
    Setup::ring(2),
    Setup::ring(4).layout(RingLayout::Striped),
    Setup::ring(6).layout(RingLayout::Zigzag),
    Setup::hybrid(2, 2),
    Setup::allgather_kv(3),
    Setup::ulysses_allgather(2, 2),
];

/// A row's values, by what it attends: NaN in a key or value reaches the rows that attend it, and no other.
#[test]
fn a_nan_reaches_those_who_attend_it_and_nobody_else() {
    fn poisoned<A: ParallelAttention<attn::ThreadComm, f32>>(setup: Setup, in_key: bool) {
        let problem = Problem::new(1, 96, 2, 8).causal();
        let mut inputs: Inputs<f32> = problem.inputs(5);
        let clean: Whole<f32> = attend::<A, f32>(setup, &inputs).unwrap();
        // Key 70 of head 1.
        let tensor = if in_key { &mut inputs.key } else { &mut inputs.value };
        tensor.as_mut_slice()[(70 * 2 + 1) * 8 + 3] = f32::NAN;
        let whole = attend::<A, f32>(setup, &inputs).unwrap();
        for i in 0..96 {
            for h in 0..2 {
                let row = |whole: &Whole<f32>| whole.out[(i * 2 + h) * 8..][..8].to_vec();
                if h == 1 && i >= 70 {
                    assert!(
                        row(&whole).iter().any(|x| x.is_nan()),
                        "{setup}: row {i} of head {h} hides the NaN"
                    );
                } else {
                    assert_eq!(
                        row(&whole),
                        row(&clean),
                        "{setup}: row {i} of head {h} does not attend the NaN"
                    );
                }
            }
        }
    }
    for in_key in [true, false] {
        for setup in SOME {
            poisoned::<WithFlash>(setup, in_key);
            poisoned::<WithSdpa>(setup, in_key);
        }
    }
}

#[test]
fn rows_that_attend_nothing_are_zero_and_their_lse_is_minus_infinity() {
    let problem = Problem::new(1, 24, 2, 8).seq_k(12).causal();
    let inputs = problem.inputs::<f32>(9);
    for setup in SOME {
        let whole = attend::<WithFlash, _>(setup, &inputs).unwrap();
        // Query 11 stands just before key 0.
        assert!(whole.out[..12 * 16].iter().all(|x| *x == 0.0), "{setup}");
        assert!(whole.out[12 * 16..].iter().all(|x| x.is_finite() && *x != 0.0), "{setup}");
        assert!(whole.lse[..12].iter().all(|x| *x == f32::NEG_INFINITY), "{setup}");
        assert!(whole.lse[12..24].iter().all(|x| x.is_finite()), "{setup}");
    }
}

/// Products of -inf weigh nothing, in whichever block they come; a row that has no other counts as attending nothing.
#[test]
fn products_of_minus_infinity_weigh_nothing() {
    fn check<A: ParallelAttention<attn::ThreadComm, f32>>(far: std::ops::Range<usize>, setup: Setup) {
        let problem = Problem::new(1, 144, 2, 4);
        let mut inputs = problem.inputs::<f32>(13);
        inputs.query.as_mut_slice().fill(1e20);
        for (position, key) in inputs.key.as_mut_slice().chunks_mut(8).enumerate() {
            key.fill(if far.contains(&position) { -1e20 } else { 0.0 });
        }
        let whole = attend::<A, f32>(setup, &inputs).unwrap();
        let near: Vec<usize> = (0..144).filter(|position| !far.contains(position)).collect();
        for i in 0..144 {
            for h in 0..2 {
                for d in 0..4 {
                    let sum: f32 = near.iter().map(|&j| inputs.value.view().at([0, j, h, d])).sum();
                    let mean = sum / near.len().max(1) as f32;
                    let out = whole.out[(i * 2 + h) * 4 + d];
                    assert!((out - mean).abs() < 1e-5, "{setup}, {far:?} far: row {i} is {out}, not {mean}");
                }
                let lse = whole.lse[h * 144 + i];
                let exact = (near.len() as f32).ln();
                assert!(lse == exact || (lse - exact).abs() < 1e-5, "{setup}: LSE {lse}, not {exact}");
            }
        }
    }
    for far in [0..70, 70..144, 10..20, 0..144] {
        for setup in SOME {
            check::<WithFlash>(far.clone(), setup);
            check::<WithSdpa>(far.clone(), setup);
        }
    }
}

/// Products of several hundred: the exponentials of one block vanish beside those of another.
#[test]
fn large_products_neither_overflow_nor_vanish() {
    let problem = Problem::new(1, 48, 2, 16);
    let mut inputs = problem.inputs::<f32>(11);
    for value in inputs.query.as_mut_slice() {
        *value *= 60.0;
    }
    for value in inputs.key.as_mut_slice() {
        *value *= 20.0;
    }
    let exact = oracle(&inputs);
    for setup in SOME {
        let whole = attend::<WithFlash, _>(setup, &inputs).unwrap();
        assert!(
            relative_error(&whole.out, &exact.out) < 2e-4,
            "{setup}: {}",
            relative_error(&whole.out, &exact.out)
        );
    }
}

#[test]
fn one_session_serves_many_shapes() {
    World::threads(2)
        .run(|comm| {
            let mut session = open::<WithFlash, _, f32>(comm, Setup::ulysses(2))?;
            for round in 0..3 {
                for seq in 1..40 {
                    let x = Tensor::from_fn([1, seq, 2, 8], |_| 1.0)?;
                    let out = session.attend(&x, &x, &x, &AttentionMetadata::default())?;
                    assert!(
                        out.as_slice().iter().all(|v| (v - 1.0).abs() < 1e-6),
                        "round {round}, seq {seq}"
                    );
                }
            }
            Ok::<_, Error>(())
        })
        .unwrap();
}

#[test]
fn a_scale_and_a_mask_may_come_with_the_call() {
    let x = Tensor::<f32>::from_fn([1, 4, 1, 8], |[_, s, _, d]| (s * 8 + d) as f32 / 16.0).unwrap();
    World::threads(1)
        .run(|comm| {
            let mut session = open::<WithFlash, _, f32>(comm, Setup::NONE)?;
            // With a scale of zero all keys weigh the same: causal rows are running means.
            let metadata = AttentionMetadata::default().with_scale(0.0).with_causal();
            let out = session.attend(&x, &x, &x, &metadata)?;
            for i in 0..4 {
                let mean = (0..=i).map(|j| x.view().at([0, j, 0, 3])).sum::<f32>() / (i + 1) as f32;
                assert!((out.view().at([0, i, 0, 3]) - mean).abs() < 1e-6);
            }
            Ok::<_, Error>(())
        })
        .unwrap();
}
