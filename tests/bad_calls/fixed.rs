//! What an attribute fixes, a call must keep.

use attn::prelude::*;
use attn::{Error, ThreadComm};

use crate::rig::{Counting, answers, tensor};

#[parallel_attention(
    strategy = "ulysses",
    heads = 8,
    kv_heads = 4,
    head_dim = 16,
    degree = 2,
    mask = "causal+segments",
    scale = 0.5,
    backend = Counting
)]
struct Fixed;

const IDS: [i32; 8] = [0, 0, 0, 1, 1, 1, 2, 2];

/// Refuses a call on two ranks, on each of them.
#[track_caller]
fn fails(query: [usize; 4], key: [usize; 4], metadata: &AttentionMetadata<'_, f32>, says: &str) {
    let errors = answers(2, |comm| {
        let mut session = Session::<Fixed, _, f32>::open(comm).unwrap();
        let (q, k) = (tensor(query), tensor(key));
        let error = session.attend(&q, &k, &k, metadata).unwrap_err();
        assert_eq!(session.traffic().collectives, 0);
        error
    });
    for error in errors {
        assert!(matches!(error, Error::Declared { .. }), "{error}");
        assert_eq!(error.to_string(), format!("the attribute says {says}"));
    }
}

#[test]
fn shapes_and_scale_must_be_those_of_the_attribute() {
    let (query, key) = ([1, 4, 8, 16], [1, 4, 4, 16]);
    let right = || AttentionMetadata::default().with_segments(Segments::of(&IDS));
    fails([1, 4, 4, 16], key, &right(), "`heads = 8`, but this call has 4");
    fails(query, query, &right(), "`kv_heads = 4`, but this call has 8");
    fails([1, 4, 8, 8], [1, 4, 4, 8], &right(), "`head_dim = 16`, but this call has 8");
    let says = "`scale = 0.5`, but this call has metadata that asks for 0.25";
    fails(query, key, &right().with_scale(0.25), says);
    let says = "`scale = 0.5`, but this call has metadata that asks for NaN";
    fails(query, key, &right().with_scale(f32::NAN), says);
}

#[test]
fn masks_must_be_those_of_the_attribute() {
    let dense = &Tensor::<u8>::from_fn([1, 1, 8, 8], |_| 1).unwrap();
    let plain = || AttentionMetadata::<f32>::default();
    let right = || plain().with_segments(Segments::of(&IDS));
    let window = Span::Window { left: 2, right: 0 };
    for (metadata, found) in [
        (plain(), "without segments"),
        (plain().with_causal(), "without segments"),
        (right().with_dense(dense), "with a dense mask"),
        (right().with_key_lengths(&[3]), "with key lengths (`padding`)"),
        (right().with_span(Span::Full), "that asks for `none`"),
        (right().with_span(window), "that asks for `window(2, 0)`"),
    ] {
        let says = format!("`mask = \"causal+segments\"`, but this call has metadata {found}");
        fails([1, 4, 8, 16], [1, 4, 4, 16], &metadata, &says);
    }
    for metadata in [right(), right().with_causal(), right().with_scale(0.5)] {
        let answers = answers(2, |comm| {
            let mut session = Session::<Fixed, _, f32>::open(comm)?;
            let (query, key) = (tensor([1, 4, 8, 16]), tensor([1, 4, 4, 16]));
            session.attend(&query, &key, &key, &metadata).map(drop)
        });
        assert_eq!(answers, [Ok(()), Ok(())]);
    }
}

#[test]
fn the_group_must_be_that_of_the_attribute() {
    for ranks in [1, 4] {
        let errors =
            answers(ranks, |comm: ThreadComm| Session::<Fixed, _, f32>::open(comm).map(drop).unwrap_err());
        let says = format!("the attribute says `degree = 2`, but this call has a group of {ranks} ranks");
        assert_eq!(errors.iter().map(Error::to_string).collect::<Vec<_>>(), vec![says; ranks]);
    }
}
