//! Norms and rotations that do not fit the queries and keys that they are to be done to.

use attn::prelude::*;
use attn::{Edge, Edges, Error, RmsNorm, Rope, RopePairs};

use crate::rig::{Open, every, refused, share, tensor};

const SEQ: usize = 24;

/// Refuses an edge of each tensor in turn, made for so many rows, of queries and keys `[2, n, 4, 8]` and three joint tokens.
#[track_caller]
fn fails(
    make: impl for<'a> Fn(&'a Parts) -> Edge<'a, f32> + Sync,
    parts: impl Fn(usize) -> Parts + Sync,
    says: &[&str],
) {
    for setup in every() {
        for name in ["query", "key", "joint_query", "joint_key"] {
            let call = |session: &mut Open, rank| {
                let n = share(session, SEQ, rank);
                let (x, text) = (tensor([2, n, 4, 8]), tensor([2, 3, 4, 8]));
                let parts = parts(if name.starts_with("joint") { 3 } else { n });
                let mut edges = Edges::default();
                *match name {
                    "query" => &mut edges.query,
                    "key" => &mut edges.key,
                    "joint_query" => &mut edges.joint_query,
                    _ => &mut edges.joint_key,
                } = make(&parts);
                let metadata = AttentionMetadata::joint(&text, &text, &text, JointStrategy::Rear);
                session.attend(&x, &x, &x, &metadata.with_edges(&edges)).map(drop)
            };
            let named = format!("`edges.{name}`: ");
            let all: Vec<&str> = says.iter().copied().chain([named.as_str()]).collect();
            assert!(matches!(refused(&setup, call, &all), Error::Edge { edge, .. } if edge == name));
        }
    }
}

struct Parts {
    weight: Tensor<f32>,
    cos: Tensor<f32>,
    sin: Tensor<f32>,
}

fn normed(eps: f32) -> impl for<'a> Fn(&'a Parts) -> Edge<'a, f32> + Sync {
    move |parts| Edge { norm: Some(RmsNorm { weight: Some(parts.weight.view()), eps }), rope: None }
}

fn rotated(parts: &Parts) -> Edge<'_, f32> {
    let (cos, sin) = (parts.cos.view(), parts.sin.view());
    Edge { norm: None, rope: Some(Rope { cos, sin, pairs: RopePairs::Halves }) }
}

fn weights(shape: [usize; 4]) -> Parts {
    Parts { weight: tensor(shape), cos: tensor([1; 4]), sin: tensor([1; 4]) }
}

fn tables(cos: [usize; 4], sin: [usize; 4]) -> Parts {
    Parts { weight: tensor([1; 4]), cos: tensor(cos), sin: tensor(sin) }
}

#[test]
fn weights_are_one_for_each_channel() {
    let expected = "expected [1, 1, 1, 8] or [1, 1, 4, 8]";
    for shape in [[1, 1, 1, 7], [1, 1, 2, 8], [1, 1, 4, 16], [1, 4, 1, 8], [2, 1, 1, 8], [8, 1, 1, 1]] {
        fails(normed(1e-6), |_| weights(shape), &[&format!("weight has shape {shape:?}"), expected]);
    }
}

#[test]
fn an_eps_is_a_number_from_zero_on() {
    for (eps, says) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-1e-6, "-0.000001")] {
        fails(normed(eps), |_| weights([1, 1, 1, 8]), &[&format!("an eps of {says} "), "from 0 on"]);
    }
}

#[test]
fn tables_have_a_row_of_angles_for_each_row() {
    let says = ["the table cos has shape", "1 or 2", "rows"];
    fails(rotated, |n| tables([1, n + 1, 1, 4], [1, n + 1, 1, 4]), &says);
    fails(rotated, |n| tables([3, n, 1, 4], [3, n, 1, 4]), &says);
    fails(rotated, |n| tables([1, n, 4, 4], [1, n, 4, 4]), &says);
    let unlike = ["the table sin has shape", "and cos has"];
    fails(rotated, |n| tables([2, n, 1, 4], [1, n, 1, 4]), &unlike);
    fails(rotated, |n| tables([1, n, 1, 4], [1, n, 1, 3]), &unlike);
}

#[test]
fn no_more_channels_are_rotated_than_there_are() {
    fails(
        rotated,
        |n| tables([1, n, 1, 5], [1, n, 1, 5]),
        &["5 angles a row, which rotate 10 of 8 channels", "from 1 to 4"],
    );
    fails(rotated, |n| tables([1, n, 1, 0], [1, n, 1, 0]), &["0 angles a row", "from 1 to 4"]);
}

#[test]
fn what_is_not_there_has_no_edge() {
    for setup in every() {
        for name in ["joint_query", "joint_key"] {
            let call = |session: &mut Open, rank| {
                let x = tensor([1, share(session, SEQ, rank), 4, 8]);
                let edge = Edge { norm: Some(RmsNorm { weight: None, eps: 0.0 }), rope: None };
                let edges = match name {
                    "joint_query" => Edges { joint_query: edge, ..Edges::default() },
                    _ => Edges { joint_key: edge, ..Edges::default() },
                };
                session.attend(&x, &x, &x, &AttentionMetadata::default().with_edges(&edges)).map(drop)
            };
            refused(&setup, call, &[&format!("`edges.{name}`: the call has no joint tensors")]);
        }
    }
}

#[test]
fn edges_of_joint_tensors_without_tokens_are_none() {
    let text = &tensor([1, 0, 4, 8]);
    let table = &tensor([1, 0, 1, 4]);
    for (ranks, config) in every() {
        let answers = crate::rig::answers(ranks, |comm| {
            let rank = comm.rank();
            let mut session = Open::open_with(comm, &config)?;
            let x = tensor([1, share(&session, SEQ, rank), 4, 8]);
            let rope = Some(Rope { cos: table.view(), sin: table.view(), pairs: RopePairs::Interleaved });
            let edges = Edges { joint_key: Edge { norm: None, rope }, ..Edges::default() };
            let metadata = AttentionMetadata::joint(text, text, text, JointStrategy::Front);
            session.attend(&x, &x, &x, &metadata.with_edges(&edges)).map(|out| out.shape() == x.shape())
        });
        assert_eq!(answers, vec![Ok(true); ranks], "{config:?}");
    }
}
