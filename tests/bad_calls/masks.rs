//! Masks whose numbers do not fit the call, and masks that a kernel does not take.

use attn::prelude::*;
use attn::{AttentionCall, AttentionKernel, Error, MaskKinds, Scope};

use crate::rig::{Open, answers, every, refused, share, tensor};

const SEQ: usize = 24;
const KEYS: usize = 48;

/// Refuses a call of two rows, four heads, 24 queries and 48 keys, whatever the strategy.
#[track_caller]
fn fails(metadata: &AttentionMetadata<'_, f32>, says: &[&str]) {
    for setup in every() {
        let call = |session: &mut Open, rank| {
            let (query, key) =
                (tensor([2, share(session, SEQ, rank), 4, 8]), tensor([2, share(session, KEYS, rank), 2, 8]));
            session.attend(&query, &key, &key, metadata).map(drop)
        };
        refused(&setup, call, says);
    }
}

fn plain() -> AttentionMetadata<'static, f32> {
    AttentionMetadata::default()
}

#[test]
fn there_is_a_key_length_for_each_row_and_none_is_beyond_the_keys() {
    let each = "one for each row of the batch";
    fails(&plain().with_key_lengths(&[]), &["`key_lengths` has 0 lengths, expected 2", each]);
    fails(&plain().with_key_lengths(&[4]), &["`key_lengths` has 1 lengths, expected 2", each]);
    fails(&plain().with_key_lengths(&[4, 4, 4]), &["`key_lengths` has 3 lengths, expected 2", each]);
    fails(
        &plain().with_key_lengths(&[4, KEYS + 1]),
        &["row 1 has 49 keys, but there are 48 positions of keys"],
    );
    fails(&plain().with_key_lengths(&[usize::MAX, 0]), &["row 0 has 18446744073709551615 keys"]);
    fails(&plain().with_causal().with_key_lengths(&[4]), &["`key_lengths` has 1 lengths, expected 2"]);
}

#[test]
fn there_is_a_segment_for_each_query_and_each_key() {
    let (queries, keys) = (&[0; 2 * SEQ][..], &[0; 2 * KEYS][..]);
    let segments = |query, key| plain().with_segments(Segments { query, key });
    fails(&segments(&queries[1..], keys), &["`segments` has 47 ids of query positions, expected 2 x 24"]);
    fails(&segments(&[], keys), &["`segments` has 0 ids of query positions"]);
    fails(&segments(queries, &keys[SEQ..]), &["`segments` has 72 ids of key positions, expected 2 x 48"]);
    // One sequence's ids for two sequences of unlike lengths.
    fails(
        &plain().with_segments(Segments::of(queries)),
        &["`segments` has 48 ids of key positions, expected 2 x 48"],
    );
}

#[test]
fn a_dense_mask_has_a_value_for_each_query_and_each_key() {
    let right = [2, 4, SEQ, KEYS];
    for (axis, wrong) in
        [(0, 1), (0, 3), (1, 2), (1, 0), (2, SEQ - 1), (2, KEYS), (3, SEQ), (3, KEYS + 1), (3, 0)]
    {
        let mut shape = right;
        shape[axis] = wrong;
        let dense = Tensor::<u8>::from_fn(shape, |_| 1).unwrap();
        let found = format!("`dense` has shape {shape:?}, expected {right:?}, or 1 in place of the 4 heads");
        fails(&plain().with_dense(&dense), &[&found, "positions of the whole sequence"]);
    }
}

#[test]
fn a_dense_mask_has_the_joint_tokens_too() {
    let (query, key) = (&tensor([2, 3, 4, 8]), &tensor([2, 3, 2, 8]));
    let right = [2, 4, SEQ + 3, KEYS + 3];
    for shape in [[2, 4, SEQ, KEYS], [2, 1, SEQ + 3, KEYS], [2, 1, SEQ, KEYS + 3]] {
        let dense = &Tensor::<u8>::from_fn(shape, |_| 1).unwrap();
        let found = format!("`dense` has shape {shape:?}, expected {right:?}");
        let joint = AttentionMetadata::joint(query, key, key, JointStrategy::Rear);
        fails(&joint.with_dense(dense), &[&found, "joint tokens included"]);
    }
}

/// Takes no mask at all.
#[derive(Default)]
struct Maskless;

impl<T: Element> AttentionKernel<Cpu, T> for Maskless {
    const MASKS: MaskKinds = MaskKinds { span: false, key_lengths: false, segments: false, dense: false };

    fn forward(&self, _: Scope<'_, Cpu>, _: &mut AttentionCall<'_, T, Cpu>) -> attn::Result<()> {
        Ok(())
    }
}

#[parallel_attention(strategy = ["none", "ulysses", "allgather_kv", "ulysses_allgather"], backend = Maskless)]
struct WithMaskless;

#[test]
fn a_mask_that_the_kernel_does_not_take_is_refused_before_anything_moves() {
    let dense = &Tensor::<u8>::from_fn([2, 1, SEQ, SEQ], |_| 1).unwrap();
    let ids = [0; 2 * SEQ];
    let calls = [
        ("causal", plain().with_causal()),
        ("window(1, 2)", plain().with_span(Span::Window { left: 1, right: 2 })),
        ("padding", plain().with_key_lengths(&[3, 4])),
        ("segments", plain().with_segments(Segments::of(&ids))),
        ("dense", plain().with_dense(dense)),
        ("causal+padding", plain().with_causal().with_key_lengths(&[3, 4])),
    ];
    for (ranks, config) in every() {
        if matches!(config.strategy.as_deref(), Some("ring" | "hybrid")) {
            continue;
        }
        for (name, metadata) in &calls {
            let errors = answers(ranks, |comm| {
                let rank = comm.rank();
                let mut session = Session::<WithMaskless, _, f32>::open_with(comm, &config).unwrap();
                let x = tensor([2, session.sharding().sequence(SEQ).unwrap().length(rank), 4, 8]);
                let before = session.traffic();
                let error = session.attend(&x, &x, &x, metadata).unwrap_err();
                assert_eq!(session.traffic(), before);
                assert!(session.attend(&x, &x, &x, &plain()).is_ok());
                error
            });
            let says = format!(
                "the mask `{name}` is not taken by this strategy with this kernel: they take none; use others"
            );
            for error in errors {
                assert!(matches!(error, Error::MaskKind { .. }));
                assert!(error.to_string().starts_with(&says), "{error}");
            }
        }
    }
}

#[parallel_attention(strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"], backend = "flash")]
struct WithFlash;

#[test]
fn a_window_without_end_is_none() {
    let max = usize::MAX;
    let attend = |ranks: usize, config: &ParallelConfig, span| {
        answers(ranks, |comm| {
            let rank = comm.rank();
            let mut session = Session::<WithFlash, _, f32>::open_with(comm, config).unwrap();
            let n = session.sharding().sequence(SEQ).unwrap().length(rank);
            let x = Tensor::from_fn([1, n, 4, 8], |[_, s, h, d]| {
                ((rank + 3 * s + 5 * h + 7 * d) % 11) as f32 / 4.0
            });
            let x = x.unwrap();
            session.attend(&x, &x, &x, &plain().with_span(span)).unwrap().as_slice().to_vec()
        })
    };
    for (ranks, config) in every() {
        for (window, same) in [
            (Span::Window { left: max, right: max }, Span::Full),
            (Span::Window { left: max, right: 0 }, Span::Causal),
            (Span::Window { left: max - 1, right: 0 }, Span::Causal),
            (Span::Window { left: 1 << 62, right: 1 << 63 }, Span::Full),
        ] {
            assert_eq!(attend(ranks, &config, window), attend(ranks, &config, same), "{config:?}, {window}");
        }
    }
}
