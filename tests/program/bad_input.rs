//! What is wrong is said in one line, with the exit code that `--help` promises, and leaves no file.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use tempfile::{TempDir, tempdir};

use crate::tensors::{Values, write};
use crate::{fail, names, succeed};

const SHAPE: [usize; 4] = [2, 24, 12, 16];

/// A folder with a good `in.safetensors`.
fn folder() -> TempDir {
    folder_with(&[("q", SHAPE), ("k", SHAPE), ("v", SHAPE)])
}

/// A folder with an `in.safetensors` of these tensors.
fn folder_with(tensors: &[(&str, [usize; 4])]) -> TempDir {
    let folder = tempdir().unwrap();
    let values: Vec<Values> = tensors.iter().map(|(_, shape)| Values::random(1, *shape)).collect();
    let tensors: Vec<_> =
        tensors.iter().zip(&values).map(|((name, _), values)| (*name, values, Dtype::F32)).collect();
    write(&folder.path().join("in.safetensors"), &tensors);
    folder
}

/// Fails on `in.safetensors` and leaves no other file.
#[track_caller]
fn refuse(folder: &TempDir, args: &[&str], code: i32, says: &[&str]) {
    let io = ["--input", "in.safetensors"];
    fail(folder.path(), &[&io[..], args].concat(), code, says);
    let with_output = [&io[..], args, &["--output", "out.safetensors"]].concat();
    fail(folder.path(), &with_output, code, &[]);
    assert_eq!(names(folder.path()), ["in.safetensors"]);
}

#[test]
fn command_lines_that_are_wrong() {
    let folder = folder();
    refuse(&folder, &["--strategy", "rings"], 2, &["'rings'", "none, ulysses, ring", "'ring'"]);
    refuse(
        &folder,
        &["--strategy", "ulysses_quantised"],
        2,
        &["8 bits", "--backend sage", "--strategy ulysses"],
    );
    refuse(&folder, &["--backend", "flush"], 2, &["flash, sdpa", "'flash'"]);
    refuse(&folder, &["--backend", "sage"], 2, &["`sage`", "--device cuda"]);
    fail(folder.path(), &["--backend", "sage"], 2, &["`sage`", "--device cuda"]);
    refuse(&folder, &["--ranks", "0"], 2, &["0 is not between 1 and 1024"]);
    refuse(&folder, &["--ranks", "1025"], 2, &["1025 is not between 1 and 1024"]);
    refuse(&folder, &["--ranks", "two"], 2, &["expected a number between 1 and 1024"]);
    refuse(&folder, &["--ranks", "99999999999999999999999"], 2, &["between 1 and 1024"]);
    refuse(
        &folder,
        &["--strategy", "ring", "--ranks", "24", "--threads", "1024"],
        2,
        &["24 ranks", "24576 threads"],
    );
    refuse(&folder, &["--dtype", "f64"], 2, &["f32, f16, bf16"]);
    refuse(
        &folder,
        &["--scatter", "1"],
        2,
        &["`--scatter 1 --gather 1`", "2 and 1 ([batch, seq, heads, head_dim])"],
    );
    for scale in ["0", "nan", "inf", "-1", "1e-60", "1e60"] {
        refuse(&folder, &["--scale", scale], 2, &["finite number above 0"]);
    }
    let two = ["--input", "in.safetensors", "--output", "out.safetensors", "--strategy", "ulysses,ring"];
    fail(folder.path(), &two, 2, &["one run", "asks for 2"]);
    fail(folder.path(), &["--input", "in.safetensors", "--lse"], 2, &["`--lse`", "`--output`"]);
    fail(folder.path(), &["doctor", "--lse"], 2, &["--lse"]);
    assert_eq!(names(folder.path()), ["in.safetensors"]);
}

#[test]
fn flags_for_files_are_refused_without_one() {
    let folder = tempdir().unwrap();
    for args in [
        &["--dtype", "bf16"][..],
        &["--mask", "causal"],
        &["--lse"],
        &["--joint", "front"],
        &["--scatter", "2"],
        &["--gather", "1"],
        &["--scale", "0.1"],
        &["--no-check"],
        &["--keys", "sharded"],
    ] {
        fail(folder.path(), args, 2, &[args[0], "`--input`"]);
    }
    fail(folder.path(), &["--output", "out.safetensors"], 2, &["picture", ".png"]);
    fail(folder.path(), &["--strategy", "ulysses", "--ranks", "3"], 3, &["4 query heads", "1, 2 and 4"]);
    fail(folder.path(), &["--strategy", "ring", "--ranks", "3"], 3, &["256 positions", "1, 2, 4, 8"]);
    fail(
        folder.path(),
        &["--strategy", "none", "--ranks", "2"],
        2,
        &["`none` runs on one rank", "`--strategy`"],
    );
    fail(folder.path(), &["--output", "no/digits.png"], 4, &["no/digits.png"]);
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn strategies_that_cannot_run_on_the_tensors() {
    let folder = folder_with(&[("q", [1, 10, 6, 8]), ("k", [1, 15, 2, 8]), ("v", [1, 15, 2, 8])]);
    refuse(
        &folder,
        &["--strategy", "ulysses", "--ranks", "4"],
        3,
        &["6 query heads", "4 ranks", "1, 2 and 6"],
    );
    refuse(&folder, &["--strategy", "ulysses", "--ranks", "3"], 3, &["2 key/value heads", "1, 2 and 6"]);
    refuse(
        &folder,
        &["--strategy", "ring", "--ranks", "3"],
        3,
        &["`q`: 10 positions", "3 ranks", "1, 2, 5 and 10"],
    );
    refuse(
        &folder,
        &["--strategy", "ring", "--ranks", "2"],
        3,
        &["`k` and `v`: 15 positions", "1, 3, 5 and 15"],
    );
    refuse(&folder, &["--ranks", "2"], 2, &["`none` runs on one rank", "`--strategy`", "2"]);
    refuse(
        &folder,
        &["--strategy", "none", "--ranks", "2"],
        2,
        &["`none` runs on one rank", "`--strategy`", "2"],
    );
}

#[test]
fn tensors_that_do_not_fit() {
    let other = |shape| folder_with(&[("q", SHAPE), ("k", shape), ("v", SHAPE)]);
    refuse(&folder_with(&[("q", SHAPE), ("v", SHAPE)]), &[], 3, &["no tensor `k`", "`q`, `v`"]);
    refuse(&folder_with(&[]), &[], 3, &["no tensor `q`", "it has none"]);
    refuse(&other([3, 24, 12, 16]), &[], 3, &["`k`", "[3, 24, 12, 16]", "[2, 24, 12, 16]", "batch"]);
    refuse(&other([2, 24, 12, 8]), &[], 3, &["`k`", "head_dim"]);
    refuse(&other([2, 24, 5, 16]), &[], 3, &["`v`", "[2, 24, 5, 16]"]);
    refuse(&other([2, 0, 12, 16]), &[], 3, &["`k`", "[2, 0, 12, 16]", "length 0"]);
    let heads = folder_with(&[("q", SHAPE), ("k", [2, 24, 5, 16]), ("v", [2, 24, 5, 16])]);
    refuse(&heads, &[], 3, &["5 heads", "12 heads"]);
    for [at, shape] in [["q", "k"], ["k", "v"], ["v", "q"]] {
        let values = Values::random(1, SHAPE);
        let flat = Values { shape: vec![2, 24, 192], values: values.values.clone() };
        let folder = tempdir().unwrap();
        let third = ["q", "k", "v"].into_iter().find(|name| ![at, shape].contains(name)).unwrap();
        let tensors = [(at, &flat, Dtype::F32), (shape, &values, Dtype::F32), (third, &values, Dtype::F32)];
        write(&folder.path().join("in.safetensors"), &tensors);
        refuse(&folder, &[], 3, &[&format!("`{at}`"), "[2, 24, 192]", "four axes"]);
    }
}

#[test]
fn types_that_differ_or_cannot_be_computed_in() {
    let values = Values::random(1, SHAPE);
    for (types, says) in [
        ([Dtype::F32, Dtype::F16, Dtype::F32], ["`k` is f16", "`q` is f32"]),
        ([Dtype::F32, Dtype::F32, Dtype::BF16], ["`v` is bf16", "f32"]),
        ([Dtype::I32, Dtype::I32, Dtype::I32], ["`q`", "F32, F16 or BF16"]),
        ([Dtype::F64, Dtype::F64, Dtype::F64], ["F64", "F32, F16 or BF16"]),
    ] {
        let folder = tempdir().unwrap();
        let tensors: Vec<_> =
            ["q", "k", "v"].into_iter().zip(types).map(|(name, dtype)| (name, &values, dtype)).collect();
        write(&folder.path().join("in.safetensors"), &tensors);
        refuse(&folder, &[], 3, &says);
        refuse(&folder, &["--dtype", "f32"], 3, &says);
    }
}

#[test]
fn joint_tensors_that_do_not_fit() {
    let plain = [("q", SHAPE), ("k", SHAPE), ("v", SHAPE)];
    let joint = |joint: &[(&'static str, [usize; 4])]| folder_with(&[&plain[..], joint].concat());
    let small = [2, 5, 12, 16];
    let all = joint(&[("joint_q", small), ("joint_k", small), ("joint_v", small)]);
    refuse(&all, &[], 3, &["`joint_q`", "--joint front", "--joint rear"]);
    refuse(&all, &["--joint", "rear", "--mask", "causal"], 3, &["causal", "joint"]);
    refuse(&joint(&[]), &["--joint", "front"], 3, &["`--joint front`", "joint_q", "none of them"]);
    refuse(&joint(&[("joint_q", small)]), &["--joint", "front"], 3, &["no tensor `joint_k`"]);
    let long = joint(&[("joint_q", small), ("joint_k", [2, 6, 12, 16]), ("joint_v", small)]);
    refuse(&long, &["--joint", "front"], 3, &["`joint_k`", "[2, 6, 12, 16]", "[2, 5, 12, 16]"]);
}

#[test]
fn files_that_are_damaged() {
    let folder = folder();
    let input = folder.path().join("in.safetensors");
    let whole = fs::read(&input).unwrap();
    for length in [0, 7, 8, 100, whole.len() - 1] {
        fs::write(&input, &whole[..length]).unwrap();
        refuse(&folder, &[], 3, &["in.safetensors", &format!("({length} bytes)"), "damaged"]);
    }
    fs::write(&input, [whole.as_slice(), b"more"].concat()).unwrap();
    refuse(&folder, &[], 3, &["damaged"]);
    fs::write(&input, b"PNG or what else, but no tensors at all").unwrap();
    refuse(&folder, &[], 3, &["damaged"]);
    let huge = br#"{"q":{"dtype":"F32","shape":[9223372036854775807,9,9,9],"data_offsets":[0,0]}}"#;
    fs::write(&input, [&(huge.len() as u64).to_le_bytes()[..], huge].concat()).unwrap();
    refuse(&folder, &[], 3, &["damaged"]);
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempdir().unwrap();
    fail(folder.path(), &["--input", "absent"], 4, &["cannot read `absent`", "No such file"]);
    fail(folder.path(), &["--input", "."], 4, &["cannot read `.`", "folder"]);
    fail(folder.path(), &["--input", ""], 2, &["--input"]);
    if Path::new("/dev/zero").exists() {
        fail(folder.path(), &["--input", "/dev/zero"], 4, &["not a regular file"]);
    }
}

#[test]
fn files_that_cannot_be_written_are_found_before_the_input_is_read() {
    let folder = folder();
    // Were it read, it would be damaged, and the exit code another.
    fs::write(folder.path().join("in.safetensors"), b"").unwrap();
    let to = |output| ["--input", "in.safetensors", "--output", output];
    fail(folder.path(), &to("no/out"), 4, &["cannot write `no/out`", "No such file"]);
    fail(folder.path(), &to("."), 4, &["cannot write `.`", "folder"]);
    fail(folder.path(), &to(""), 2, &["--output"]);
    fail(folder.path(), &to("in.safetensors/out"), 4, &["cannot write"]);
    if Path::new("/dev/full").exists() {
        fail(folder.path(), &to("/dev/full"), 4, &["not a regular file"]);
    }
    assert_eq!(names(folder.path()), ["in.safetensors"]);
}

#[test]
fn an_existing_file_stays_as_it_was_until_it_is_replaced() {
    let folder = folder();
    let (old, good) = (folder.path().join("old"), ["--input", "in.safetensors", "--output", "old"]);
    fs::write(&old, b"precious").unwrap();
    fail(
        folder.path(),
        &[&good[..], &["--strategy", "ulysses", "--ranks", "5"]].concat(),
        3,
        &["12 query heads"],
    );
    fail(folder.path(), &[&good[..], &["--joint", "front"]].concat(), 3, &[]);
    assert_eq!(fs::read(&old).unwrap(), b"precious");
    succeed(folder.path(), &good);
    assert!(fs::read(&old).unwrap().len() > 2 * 24 * 12 * 16 * 4);
    assert_eq!(names(folder.path()), ["in.safetensors", "old"]);
}

#[cfg(unix)]
#[test]
fn a_link_stays_a_link() {
    let folder = folder();
    std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
    std::os::unix::fs::symlink("round", folder.path().join("round")).unwrap();
    for _ in 0..2 {
        succeed(folder.path(), &["--input", "in.safetensors", "--output", "link"]);
        assert!(folder.path().join("link").is_symlink());
        assert!(folder.path().join("real").is_file());
    }
    fail(
        folder.path(),
        &["--input", "in.safetensors", "--output", "round"],
        4,
        &["cannot write `round`", "circle"],
    );
    assert_eq!(names(folder.path()), ["in.safetensors", "link", "real", "round"]);
}
