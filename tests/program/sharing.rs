//! Degrees, layouts, splits and masks: what follows from what, and what is refused.

use safetensors::Dtype;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::tensors::{Values, write};
use crate::{fail, names, succeed};

const SHAPE: [usize; 4] = [2, 24, 12, 16];

/// A folder with an `in.safetensors` of `q`, `k` and `v`, and other tensors.
fn folder(others: &[(&str, &Values, Dtype)]) -> TempDir {
    let folder = tempdir().unwrap();
    let values = Values::random(1, SHAPE);
    let tensors = ["q", "k", "v"].map(|name| (name, &values, Dtype::F32));
    write(&folder.path().join("in.safetensors"), &[&tensors[..], others].concat());
    folder
}

#[track_caller]
fn refuse(folder: &TempDir, args: &str, code: i32, says: &[&str]) {
    let args: Vec<&str> = args.split_whitespace().collect();
    fail(folder.path(), &[&["--input", "in.safetensors"][..], &args].concat(), code, says);
    assert_eq!(names(folder.path()), ["in.safetensors"]);
}

#[test]
fn ranks_follow_from_degrees_and_degrees_from_ranks() {
    let folder = folder(&[]);
    for (args, expected) in [
        ("--strategy hybrid --ulysses 2 --ring 3", vec![("hybrid", [6, 2, 3])]),
        ("--strategy hybrid --ulysses 2 --ranks 4,8", vec![("hybrid", [4, 2, 2]), ("hybrid", [8, 2, 4])]),
        ("--strategy ulysses_allgather --allgather 4 --ranks 8", vec![("ulysses_allgather", [8, 2, 4])]),
        ("--strategy hybrid --ranks 6", vec![("hybrid", [6, 2, 3])]),
        (
            "--strategy hybrid,ulysses --ulysses 3 --ring 2",
            vec![("hybrid", [6, 3, 2]), ("ulysses", [3, 3, 0])],
        ),
        ("--strategy ring --ring 4 --ulysses 1", vec![("ring", [4, 0, 4])]),
        ("--strategy ulysses --ranks 1 --layout contiguous", vec![("ulysses", [1, 1, 0])]),
    ] {
        let io = ["--input", "in.safetensors", "--json"];
        let said = succeed(folder.path(), &[&io[..], &args.split_whitespace().collect::<Vec<_>>()].concat());
        let report: Value = serde_json::from_str(&said).unwrap();
        let runs = report["runs"].as_array().unwrap().iter().map(|run| {
            let outer = if run["ring"].is_null() { &run["allgather"] } else { &run["ring"] };
            let numbers = [&run["ranks"], &run["ulysses"], outer].map(|n| n.as_u64().unwrap_or(0));
            (run["strategy"].as_str().unwrap(), numbers)
        });
        assert_eq!(runs.collect::<Vec<_>>(), expected, "{args}");
    }
}

#[test]
fn degrees_that_fit_nothing_are_refused() {
    let folder = folder(&[]);
    for (args, says) in [
        ("--ulysses 2", &["`--ulysses 2` is for ulysses, hybrid and ulysses_allgather", "runs none"][..]),
        ("--strategy ring --ranks 4 --allgather 2", &["`--allgather 2`", "allgather_kv", "this runs ring"]),
        ("--strategy ulysses,ring --ranks 4 --layout zigzag --allgather 2", &["this runs ulysses and ring"]),
        ("--strategy ulysses --ranks 4 --layout zigzag", &["`--layout zigzag` is for ring and hybrid"]),
        ("--strategy ulysses --ranks 4 --ulysses 2", &["`--ulysses 2` is 2 ranks", "`--ranks` says 4"]),
        (
            "--strategy hybrid --ranks 4 --ulysses 2 --ring 3",
            &["`hybrid`", "`--ulysses 2` times `--ring 3` is 6 ranks", "`--ranks` says 4"],
        ),
        (
            "--strategy hybrid --ranks 6,4 --ulysses 3",
            &["4 ranks are no multiple of `--ulysses 3`", "1, 2, 4"],
        ),
        ("--strategy hybrid --ulysses 2", &["give `--ring` too", "`--ranks` a multiple of 2"]),
        ("--strategy ulysses_allgather --allgather 2", &["give `--ulysses` too"]),
        ("--strategy hybrid --ulysses 64 --ring 64", &["4096 ranks", "at most 1024"]),
        ("--strategy hybrid --ulysses 0", &["0 is not between 1 and 1024"]),
        ("--strategy hybrid --ring many", &["expected a number between 1 and 1024"]),
        ("--layout zigzig", &["contiguous, zigzag, striped", "'zigzag'"]),
        ("--split even", &["strict, uneven"]),
        ("--keys here", &["sharded, replicated"]),
        ("--strategy allgather", &["allgather_kv, ulysses_allgather"]),
    ] {
        refuse(&folder, args, 2, says);
    }
}

#[test]
fn a_strict_split_says_what_would_do_and_that_uneven_would() {
    let folder = folder(&[]);
    for (args, says) in [
        (
            "--strategy ring --ranks 5",
            &["`q`: 24 positions", "5 ranks", "1, 2, 3, 4, 6, 8", "`--split uneven`"][..],
        ),
        (
            "--strategy hybrid --ulysses 5 --ring 1",
            &["12 query heads", "5 ranks", "1, 2, 3, 4, 6 and 12", "`--split uneven`"],
        ),
        (
            "--strategy ring --ranks 8 --layout zigzag",
            &["`q`: 24 positions", "16 stretches", "of 1, 2, 3, 4, 6 and 12", "`--split uneven`"],
        ),
        ("--strategy ulysses --ranks 8", &["12 query heads", "8 ranks"]),
    ] {
        refuse(&folder, args, 3, says);
        let args: Vec<&str> = args.split_whitespace().chain(["--split", "uneven"]).collect();
        succeed(folder.path(), &[&["--input", "in.safetensors"][..], &args].concat());
    }
}

#[test]
fn masks_that_cannot_be_read_are_refused() {
    let folder = folder(&[]);
    for (mask, says) in [
        ("casual", &["unknown mask `casual`", "`causal`, `window`, `padding`"][..]),
        ("causal+window:3", &["`causal` and `window` cannot be joined"]),
        ("padding+padding", &["`padding` is given twice"]),
        ("none+causal", &["`none` stands alone"]),
        ("window", &["`window` is no window", "window:left,right"]),
        ("window:1,2,3", &["no window"]),
        ("causal:3", &["only `window` has numbers"]),
    ] {
        refuse(&folder, &format!("--mask {mask}"), 2, says);
    }
}

#[test]
fn a_mask_needs_its_tensor() {
    let folder = folder(&[]);
    for (mask, says) in [
        (
            "padding",
            &["`--mask padding` needs the tensor `key_lengths`", "I64 of shape [2]", "has `k`, `q`, `v`"][..],
        ),
        ("causal+segments", &["`--mask segments` needs the tensor `segments`", "I32 of shape [2, 24]"]),
        ("dense", &["needs the tensor `mask`", "U8 or BOOL of shape [2, 1, 24, 24] or [2, 12, 24, 24]"]),
    ] {
        refuse(&folder, &format!("--mask {mask}"), 3, says);
    }
}

#[test]
fn a_masks_tensor_must_fit() {
    let of = |shape: &[usize], value: f64| Values {
        shape: shape.to_vec(),
        values: vec![value; shape.iter().product()],
    };
    let cases: [(&str, &str, Values, Dtype, &[&str]); 11] = [
        ("padding", "key_lengths", of(&[3], 1.0), Dtype::I64, &["`key_lengths` has shape [3]", "[2]"]),
        ("padding", "key_lengths", of(&[2, 1], 1.0), Dtype::I64, &["has shape [2, 1]", "expected [2]"]),
        ("padding", "key_lengths", of(&[2], 1.0), Dtype::I32, &["`key_lengths`", "type I32", "expected I64"]),
        ("padding", "key_lengths", of(&[2], 25.0), Dtype::I64, &["says 25 for row 0", "expected 0 to 24"]),
        ("padding", "key_lengths", of(&[2], -1.0), Dtype::I64, &["says -1 for row 0", "expected 0 to 24"]),
        ("segments", "segments", of(&[2, 23], 1.0), Dtype::I32, &["`segments` has shape [2, 23]", "[2, 24]"]),
        ("segments", "segments", of(&[24, 2], 1.0), Dtype::I32, &["has shape [24, 2]", "expected [2, 24]"]),
        ("segments", "segments", of(&[2, 24], 1.0), Dtype::I64, &["type I64", "expected I32"]),
        (
            "dense",
            "mask",
            of(&[2, 3, 24, 24], 1.0),
            Dtype::U8,
            &["`mask` has shape [2, 3, 24, 24]", "[2, 1, 24, 24]"],
        ),
        ("dense", "mask", of(&[2, 24, 24], 1.0), Dtype::BOOL, &["has shape [2, 24, 24]"]),
        ("dense", "mask", of(&[2, 1, 24, 24], 1.0), Dtype::F32, &["type F32", "expected U8 or BOOL"]),
    ];
    for (mask, name, values, dtype, says) in cases {
        refuse(&folder(&[(name, &values, dtype)]), &format!("--mask {mask}"), 3, says);
    }
}

#[test]
fn joint_tokens_go_with_some_masks_and_change_their_shape() {
    let joint = Values::random(2, [2, 5, 12, 16]);
    let mask = Values { shape: vec![2, 1, 24, 24], values: vec![1.0; 2 * 24 * 24] };
    let tensors = ["joint_q", "joint_k", "joint_v"].map(|name| (name, &joint, Dtype::F32));
    let folder = folder(&[&tensors[..], &[("mask", &mask, Dtype::U8)]].concat());
    for mask in ["causal", "window:3,3", "segments", "causal+padding"] {
        refuse(
            &folder,
            &format!("--joint front --mask {mask}"),
            3,
            &["joint tensors", "none, padding and dense"],
        );
    }
    refuse(
        &folder,
        "--joint rear --mask dense",
        3,
        &["[2, 1, 24, 24]", "expected [2, 1, 29, 29]", "joint tokens"],
    );
    refuse(&folder, "--mask dense", 3, &["`joint_q`", "--joint front"]);
}

#[test]
fn segments_are_for_queries_and_keys_of_one_sequence() {
    let folder = tempdir().unwrap();
    let (q, k) = (Values::random(1, SHAPE), Values::random(2, [2, 20, 12, 16]));
    write(
        &folder.path().join("in.safetensors"),
        &[("q", &q, Dtype::F32), ("k", &k, Dtype::F32), ("v", &k, Dtype::F32)],
    );
    refuse(&folder, "--mask segments", 3, &["`q` has 24 positions", "`k` has 20", "`dense`"]);
}

#[test]
fn without_a_file_masks_are_by_position() {
    let folder = tempdir().unwrap();
    for mask in ["padding", "causal+segments", "dense"] {
        fail(folder.path(), &["bench", "--mask", mask], 2, &["--mask", "needs tensors of a file", "causal"]);
        fail(folder.path(), &["--mask", mask], 2, &["`--mask`", "`--input`"]);
    }
}

#[test]
fn the_demonstration_takes_degrees_layout_and_split() {
    let folder = tempdir().unwrap();
    for (args, code, says) in [
        ("--strategy ring --ranks 3", 3, &["256 positions", "the image", "`--split uneven`"][..]),
        ("--strategy hybrid --ulysses 3 --ring 2", 3, &["4 query heads", "`--split uneven`"]),
        ("--strategy ulysses --layout striped", 2, &["`--layout striped`", "this runs ulysses"]),
        ("--keys replicated", 2, &["`--keys`", "`--input`"]),
        ("--ring 3", 2, &["`--ring 3`", "give `--ulysses` too"]),
    ] {
        fail(folder.path(), &args.split_whitespace().collect::<Vec<_>>(), code, says);
    }
    assert_eq!(names(folder.path()), [""; 0]);
}
