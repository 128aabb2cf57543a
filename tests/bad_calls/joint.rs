//! Joint tensors that do not fit, and masks that they cannot have.

use attn::prelude::*;
use attn::{Error, Mask, View};

use crate::rig::{Open, every, refused, share, tensor};

const SEQ: usize = 24;
const ORDERS: [JointStrategy; 2] = [JointStrategy::Front, JointStrategy::Rear];

/// Refuses joint tensors of these shapes beside `[2, n, 4, 8]` of queries and `[2, n, 2, 8]` of keys.
#[track_caller]
fn fails(shapes: [[usize; 4]; 3], says: &[&str]) {
    for setup in every() {
        for order in ORDERS {
            let call = |session: &mut Open, rank| {
                let n = share(session, SEQ, rank);
                let (query, key) = (tensor([2, n, 4, 8]), tensor([2, n, 2, 8]));
                let [joint_query, joint_key, joint_value] = &shapes.map(tensor);
                let metadata = AttentionMetadata::joint(joint_query, joint_key, joint_value, order);
                session.attend(&query, &key, &key, &metadata).map(drop)
            };
            refused(&setup, call, says);
        }
    }
}

#[test]
fn joint_tensors_must_fit_the_others() {
    let (query, key) = ([2, 3, 4, 8], [2, 3, 2, 8]);
    // Text and image have as many key and value heads.
    fails(
        [query, [2, 3, 4, 8], [2, 3, 4, 8]],
        &["`joint_key` has shape [2, 3, 4, 8], expected [2, 3, 2, 8]"],
    );
    fails(
        [query, [2, 3, 1, 8], [2, 3, 1, 8]],
        &["`joint_key` has shape [2, 3, 1, 8], expected [2, 3, 2, 8]"],
    );
    fails([query, key, [2, 3, 1, 8]], &["`joint_value` has shape [2, 3, 1, 8]", "joint_key's shape"]);
    fails([[1, 3, 4, 8], key, key], &["`joint_query` has shape [1, 3, 4, 8], expected [2, 3, 4, 8]"]);
    fails(
        [query, [1, 3, 2, 8], [1, 3, 2, 8]],
        &["`joint_key` has shape [1, 3, 2, 8], expected [2, 3, 2, 8]"],
    );
    fails(
        [[2, 3, 2, 8], key, key],
        &["`joint_query` has shape [2, 3, 2, 8]", "the query's shape in all but seq"],
    );
    fails([[2, 3, 4, 4], key, key], &["`joint_query` has shape [2, 3, 4, 4]"]);
    fails([query, [2, 2, 2, 8], [2, 2, 2, 8]], &["`joint_key` has shape [2, 2, 2, 8]", "joint_query's seq"]);
}

#[test]
fn joint_tensors_without_tokens_are_none() {
    let (query, key) = (&tensor([2, 0, 4, 8]), &tensor([2, 0, 2, 8]));
    for (ranks, config) in every() {
        for order in ORDERS {
            let answers = crate::rig::answers(ranks, |comm| {
                let rank = comm.rank();
                let mut session = Open::open_with(comm, &config)?;
                let n = share(&session, SEQ, rank);
                let (q, k) = (tensor([2, n, 4, 8]), tensor([2, n, 2, 8]));
                let metadata = AttentionMetadata::joint(query, key, key, order).with_causal();
                session.attend(&q, &k, &k, &metadata).map(|out| out.shape() == q.shape())
            });
            assert_eq!(answers, vec![Ok(true); ranks], "{config:?}");
        }
    }
}

#[test]
fn joint_tensors_come_together() {
    let text = &tensor([1, 3, 4, 8]);
    for given in 1..7_usize {
        let metadata = || {
            let part = |bit: usize| (given & (1 << bit) != 0).then(|| View::from(text));
            let mut metadata = AttentionMetadata::<f32>::default();
            (metadata.joint_query, metadata.joint_key, metadata.joint_value) = (part(0), part(1), part(2));
            metadata
        };
        let said = |bit: usize| if given & (1 << bit) != 0 { "given" } else { "missing" };
        let says = format!(
            "joint tensors come together: `joint_query` is {}, `joint_key` is {}, `joint_value` is {}",
            said(0),
            said(1),
            said(2)
        );
        for setup in every() {
            let call = |session: &mut Open, rank| {
                let x = tensor([1, share(session, SEQ, rank), 4, 8]);
                session.attend(&x, &x, &x, &metadata()).map(drop)
            };
            refused(&setup, call, &[&says]);
        }
    }
}

#[test]
fn joint_tokens_have_no_position_among_the_others() {
    let text = &tensor([1, 3, 4, 8]);
    let dense = &Tensor::<u8>::from_fn([1, 1, SEQ + 3, SEQ + 3], |_| 1).unwrap();
    let segments = Segments::of(&[0; SEQ]);
    for order in ORDERS {
        let joint = || AttentionMetadata::joint(text, text, text, order);
        let window = Span::Window { left: 4, right: 4 };
        let refusals = [
            ("a causal mask", joint().with_causal()),
            ("a window(4, 4) mask", joint().with_span(window)),
            ("a segments mask", joint().with_segments(segments)),
            ("a causal+segments mask", joint().with_causal().with_segments(segments)),
            ("a causal+padding mask", joint().with_causal().with_key_lengths(&[5])),
            ("a window(4, 4)+dense mask", joint().with_span(window).with_dense(dense)),
        ];
        for (says, metadata) in &refusals {
            for setup in every() {
                let call = |session: &mut Open, rank| {
                    let x = tensor([1, share(session, SEQ, rank), 4, 8]);
                    session.attend(&x, &x, &x, metadata).map(drop)
                };
                let error = refused(&setup, call, &[says, "masks that can are none, padding and dense"]);
                let mask: Mask = metadata.mask();
                assert_eq!(error, Error::JointMask { mask });
            }
        }
        for metadata in [joint(), joint().with_key_lengths(&[5]), joint().with_dense(dense)] {
            for (ranks, config) in every() {
                let answers = crate::rig::answers(ranks, |comm| {
                    let rank = comm.rank();
                    let mut session = Open::open_with(comm, &config)?;
                    let x = tensor([1, share(&session, SEQ, rank), 4, 8]);
                    session.attend(&x, &x, &x, &metadata).map(drop)
                });
                assert_eq!(answers, vec![Ok(()); ranks], "{config:?}");
            }
        }
    }
}
