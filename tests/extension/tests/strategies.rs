//! Strategies of a user's own, against dense attention in float64.

use attn::prelude::*;
use attn::{Edge, Edges, Error, Mask, RmsNorm, ThreadComm};
use attn_extension_tests::kernels::{Online, SpanOnly, TwoPass};
use attn_extension_tests::problem::Problem;

#[parallel_attention(strategy = attn_extension_tests::strategies::PairwiseAllGather, backend = Online)]
struct Pairwise;

#[parallel_attention(strategy = attn_extension_tests::strategies::PairwiseAllGather, backend = "flash")]
struct PairwiseFlash;

#[parallel_attention(strategy = attn_extension_tests::strategies::PairwiseAllGather, backend = "sdpa")]
struct PairwiseSdpa;

#[parallel_attention(strategy = attn_extension_tests::strategies::CyclicUlysses, backend = TwoPass)]
struct Cyclic;

#[parallel_attention(strategy = attn_extension_tests::strategies::CyclicUlysses, backend = SpanOnly)]
struct CyclicSpanOnly;

#[track_caller]
fn check<A: ParallelAttention<ThreadComm, f32>>(name: &str, problem: &Problem, ranks: usize) -> Vec<u64> {
    let (found, sent) = problem.on_ranks::<A>(ranks, &ParallelConfig::default()).unwrap();
    let distance = found.distance(&problem.dense_result().unwrap());
    assert!(distance < 1e-5, "{name} on {ranks} ranks: {distance}");
    sent
}

#[test]
fn a_pairwise_gather_is_exact_under_every_mask() {
    for ranks in 1..=4 {
        for (name, problem) in Problem::new(12, 6, 3).with_each_mask() {
            check::<Pairwise>(name, &problem, ranks);
        }
    }
}

#[test]
fn cross_attention_takes_sharded_and_replicated_keys() {
    let cross = Problem { seq_k: 24, ..Problem::new(12, 4, 2) };
    for (name, sharded) in cross.with_each_mask() {
        check::<Pairwise>(name, &sharded, 3);
        // Replicated keys need not divide.
        let replicated = Problem { seq_k: 7, replicated: true, ..cross.clone() };
        for (name, replicated) in replicated.with_each_mask() {
            assert_eq!(check::<Pairwise>(name, &replicated, 3), [0; 3]);
        }
    }
}

#[test]
fn a_pairwise_gather_sends_each_shard_to_each_rank_once() {
    let problem = Problem::new(12, 6, 3);
    for ranks in 1..=4 {
        let shard = problem.batch * 12 / ranks * problem.kv_heads * problem.head_dim * size_of::<f32>();
        let sent = check::<Pairwise>("none", &problem, ranks);
        assert_eq!(sent, vec![(2 * (ranks - 1) * shard) as u64; ranks]);
    }
}

#[test]
fn kernels_of_the_crate_run_under_a_strategy_of_your_own() {
    for (name, problem) in Problem::new(12, 4, 2).with_each_mask() {
        check::<PairwiseFlash>(name, &problem, 3);
        check::<PairwiseSdpa>(name, &problem, 4);
    }
}

#[test]
fn heads_dealt_out_one_by_one_come_home() {
    for ranks in [1, 2, 4] {
        for (name, problem) in Problem::new(8, 8, 4).with_each_mask() {
            if problem.dense.is_none() {
                check::<Cyclic>(name, &problem, ranks);
            }
        }
    }
    check::<Cyclic>("three", &Problem::new(9, 6, 3), 3);
}

#[track_caller]
fn refused<A: ParallelAttention<ThreadComm, f32>>(problem: &Problem, ranks: usize) -> Vec<Error> {
    problem.refused_on::<A>(ranks, &ParallelConfig::default()).unwrap()
}

#[test]
fn a_strategy_takes_the_masks_that_it_and_its_kernel_take() {
    for (name, problem) in Problem::new(8, 4, 2).with_each_mask() {
        let mask = problem.mask();
        let refuses = |error: &Error| matches!(error, Error::MaskKind { mask: told, .. } if *told == mask);
        if mask.dense {
            assert!(refused::<Cyclic>(&problem, 2).iter().all(refuses), "{name}");
        }
        if mask != Mask::from(mask.span) {
            let errors = refused::<CyclicSpanOnly>(&problem, 2);
            assert!(errors.iter().all(refuses), "{name}");
            assert!(errors[0].to_string().contains("they take none, causal, window;"), "{}", errors[0]);
        }
    }
}

#[test]
fn what_a_strategy_cannot_do_it_refuses_on_every_rank() {
    let says = "strategy `cyclic`: 2 key/value heads do not divide among 3 ranks";
    assert_eq!(refused::<Cyclic>(&Problem::new(9, 4, 2), 3), vec![Error::Configuration(says.to_owned()); 3]);
    let joint = Problem { joint: (3, JointStrategy::Rear), ..Problem::new(8, 4, 2) };
    for error in refused::<Cyclic>(&joint, 2).into_iter().chain(refused::<Pairwise>(&joint, 2)) {
        assert!(error.to_string().contains("does not take joint tensors"), "{error}");
    }
    let config = ParallelConfig { layout: Some(RingLayout::Zigzag), ..ParallelConfig::default() };
    let error = Problem::new(8, 4, 2).on_ranks::<Pairwise>(2, &config).unwrap_err();
    assert!(error.to_string().contains("equal, consecutive stretches"), "{error}");
}

/// A strategy that knows nothing of edges is given tensors to which they have been done.
#[test]
fn edges_are_done_for_a_strategy_that_does_not_heed_them() {
    World::threads(3)
        .run(|comm| {
            let rank = comm.rank();
            let mut session = Session::<PairwiseSdpa, _, f32>::open(comm)?;
            let tensor = |salt: usize| {
                Tensor::<f32>::from_fn([2, 4, 6, 8], |[b, s, h, d]| {
                    ((b * 5 + (4 * rank + s) * 3 + h * 7 + d * salt) % 11) as f32 / 4.0 - 1.0
                })
            };
            let (query, key, value) = (tensor(1)?, tensor(3)?, tensor(5)?);
            let normed = |tensor: &Tensor<f32>| {
                let view = tensor.view();
                Tensor::<f32>::from_fn(tensor.shape(), |index @ [b, s, h, _]| {
                    let mean = (0..8).map(|d| view.at([b, s, h, d]).powi(2)).sum::<f32>() / 8.0;
                    view.at(index) / (mean + 0.5).sqrt()
                })
            };
            let edge = Edge { norm: Some(RmsNorm { weight: None, eps: 0.5 }), rope: None };
            let edges = Edges { query: edge, key: edge, ..Edges::default() };
            let plain = AttentionMetadata::default();
            let expected = session.attend(&normed(&query)?, &normed(&key)?, &value, &plain)?;
            let unlike = session.attend(&query, &key, &value, &plain)?;
            let with = AttentionMetadata::default().with_edges(&edges);
            let out = session.attend(&query, &key, &value, &with)?;
            let distance = |other: &Tensor<f32>| {
                let pairs = out.as_slice().iter().zip(other.as_slice());
                pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
            };
            assert!(distance(&expected) < 1e-5, "{}", distance(&expected));
            assert!(distance(&unlike) > 1e-2);
            Ok::<_, Error>(())
        })
        .unwrap();
}
