//! Tensors that do not fit each other, or the ranks.

use attn::prelude::*;
use attn::{Error, LseMut};

use crate::rig::{every, exchanging, hybrid, named, refused, share, tensor, uneven};

/// A sequence that every strategy divides.
const SEQ: usize = 24;

/// Calls with shapes of one's own, of the share that a rank holds.
#[track_caller]
fn fails(shapes: impl Fn(usize) -> [[usize; 4]; 3] + Sync, says: &[&str]) {
    for setup in every() {
        refused(
            &setup,
            |session, rank| {
                let [query, key, value] = shapes(share(session, SEQ, rank)).map(tensor);
                session.attend(&query, &key, &value, &AttentionMetadata::default()).map(drop)
            },
            says,
        );
    }
}

#[test]
fn tensors_must_fit_each_other() {
    let s = |s: usize| [1, s, 4, 8];
    fails(
        |n| [s(n), [2, n, 4, 8], [2, n, 4, 8]],
        &["`key` has shape [2,", "expected [1,", "the query's batch"],
    );
    fails(
        |n| [s(n), [1, n, 4, 7], [1, n, 4, 7]],
        &["`key` has shape", "4, 7], expected", "4, 8] (the query's"],
    );
    fails(|n| [s(n), s(n), s(n + 1)], &["`value` has shape", "(the key's shape; axes are [batch, seq,"]);
    fails(|n| [s(n), s(n), [1, n, 2, 8]], &["`value` has shape"]);
    let cure = "3 key/value heads do not divide 4 query heads: kv_heads may be 1, 2 and 4";
    fails(|n| [s(n), [1, n, 3, 8], [1, n, 3, 8]], &[cure]);
}

#[test]
fn an_axis_of_length_zero_leaves_nothing_to_attend() {
    let empty = "an axis of length 0 leaves nothing to attend";
    for axis in [0, 2, 3] {
        let shape = move |n| {
            let mut shape = [1, n, 4, 8];
            shape[axis] = 0;
            shape
        };
        fails(|n| [shape(n); 3], &["`query` has shape", empty]);
        fails(|n| [[1, n, 4, 8], shape(n), shape(n)], &["`key` has shape", empty]);
    }
    fails(|_| [[1, 0, 4, 8]; 3], &["`query` has shape [1, 0, 4, 8]", empty]);
    fails(|n| [[1, n, 4, 8], [1, 0, 4, 8], [1, 0, 4, 8]], &["`key` has shape [1, 0, 4, 8]", empty]);
}

#[test]
fn what_is_empty_on_one_rank_is_named_whatever_the_split() {
    let setup = (1, uneven(named("ring")));
    for (query, key, says) in
        [(0, 3, "`query` has shape [1, 0, 4, 8]"), (3, 0, "`key` has shape [1, 0, 4, 8]")]
    {
        let call = |session: &mut crate::rig::Open, _| {
            let (query, key) = (tensor([1, query, 4, 8]), tensor([1, key, 4, 8]));
            session.attend(&query, &key, &key, &AttentionMetadata::default()).map(drop)
        };
        refused(&setup, call, &[says]);
    }
}

#[test]
fn outputs_must_be_as_large_as_the_query() {
    for setup in every() {
        let fails = |out: [usize; 2], lse: [usize; 3], says: &[&str]| {
            refused(
                &setup,
                |session, rank| {
                    let n = share(session, SEQ, rank);
                    let x = tensor([1, n, 4, 8]);
                    let mut wrong = tensor([1, n + out[0], 4 + out[1], 8]);
                    let mut logarithms = vec![0.0; 1024];
                    let lse = LseMut::new(&mut logarithms, [1 + lse[0], 4 + lse[1], n + lse[2]])?;
                    let outputs = Outputs::new(&mut wrong).with_lse(lse);
                    session.attend_into(&x, &x, &x, &AttentionMetadata::default(), outputs)
                },
                says,
            );
        };
        fails([1, 0], [0; 3], &["`out` has shape", "(the query's shape; axes"]);
        fails([0, 1], [0; 3], &["`out` has shape", ", 5, 8], expected"]);
        fails([0, 0], [1, 0, 0], &["`lse` has shape [2, 4,", "(batch, heads, seq of the output)"]);
        fails([0, 0], [0, 1, 0], &["`lse` has shape [1, 5,"]);
        fails([0, 0], [0, 0, 1], &["`lse` has shape"]);
    }
}

#[test]
fn query_heads_must_divide_among_the_ranks_that_share_them() {
    for setup in exchanging() {
        let says = "3 query heads do not divide among 2 ranks: degrees that do are 1 and 3";
        let call = |session: &mut crate::rig::Open, rank| {
            let x = tensor([1, share(session, SEQ, rank), 3, 8]);
            session.attend(&x, &x, &x, &AttentionMetadata::default()).map(drop)
        };
        assert!(matches!(refused(&setup, call, &[says]), Error::HeadSplit(_)));
    }
}

#[test]
fn key_heads_must_divide_among_the_ranks_that_share_them_or_divide_their_number() {
    let gathering = crate::rig::gathering(3, 2);
    for setup in [(3, named("ulysses")), (6, hybrid(3, 2)), (6, gathering)] {
        let call = |session: &mut crate::rig::Open, rank| {
            let n = share(session, SEQ, rank);
            let (query, key) = (tensor([1, n, 12, 8]), tensor([1, n, 4, 8]));
            session.attend(&query, &key, &key, &AttentionMetadata::default()).map(drop)
        };
        let says =
            "4 key/value heads neither divide among 3 ranks nor divide 3: degrees that do are 1, 2, 4 and 12";
        refused(&setup, call, &[says]);
    }
}

#[test]
fn a_scale_must_be_a_finite_number() {
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for setup in every() {
            let call = |session: &mut crate::rig::Open, rank| {
                let x = tensor([1, share(session, SEQ, rank), 4, 8]);
                session.attend(&x, &x, &x, &AttentionMetadata::default().with_scale(scale)).map(drop)
            };
            let error = refused(&setup, call, &["is not a finite number"]);
            assert!(matches!(error, Error::Scale(told) if told.to_bits() == scale.to_bits()), "{error}");
        }
    }
}
