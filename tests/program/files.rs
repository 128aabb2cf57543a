//! Attention on tensors from a file: what the options do, and where what is in a tensor goes.

use safetensors::Dtype;
use tempfile::tempdir;

use crate::dense::attention;
use crate::problem::{Problem, Sizes, TYPES};
use crate::succeed;
use crate::tensors::{BSHD, LAYOUTS, Values, read, relative_error, tensor_names, write};

const IO: [&str; 4] = ["--input", "in.safetensors", "--output", "out.safetensors"];

/// Query, key and value of 24 positions and 12 heads.
fn qkv() -> [Values; 3] {
    [1, 2, 3].map(|seed| Values::random(seed, [2, 24, 12, 16]).rounded(Dtype::F32))
}

fn write_qkv(path: &std::path::Path, [q, k, v]: &[Values; 3]) {
    write(path, &[("q", q, Dtype::F32), ("k", k, Dtype::F32), ("v", v, Dtype::F32)]);
}

/// Every strategy on numbers of ranks that 12 heads and 24 positions divide among.
fn runs() -> Vec<(&'static str, &'static str)> {
    let several = ["ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"];
    let several = several.into_iter().flat_map(|strategy| ["1", "3", "4"].map(|ranks| (strategy, ranks)));
    std::iter::once(("none", "1")).chain(several).collect()
}

#[test]
fn joint_tokens_stand_before_or_behind_the_others_in_every_strategy() {
    let folder = tempdir().unwrap();
    let sizes = Sizes { batch: 2, seq: [24, 24], heads: [12, 1], dim: 16, joint: 5 };
    let problem = Problem::new(Dtype::F32, sizes);
    for (number, (scatter, gather, order)) in LAYOUTS.into_iter().enumerate() {
        problem.write(&folder.path().join("in.safetensors"), order);
        for (side, mask) in
            [("front", "none"), ("rear", "none"), ("front", "padding+dense"), ("rear", "dense")]
        {
            let expected = problem.expected(mask, side);
            // Each layout has a third of them.
            for (strategy, ranks) in runs().into_iter().skip(number).step_by(3) {
                let how =
                    ["--strategy", strategy, "--ranks", ranks, "--scatter", scatter, "--gather", gather];
                let args = [&how[..], &["--joint", side, "--mask", mask]].concat();
                expected.check(folder.path(), Dtype::F32, order, &args);
            }
        }
    }
}

#[test]
fn a_mask_that_is_not_named_is_not_looked_at() {
    let folder = tempdir().unwrap();
    let [q, k, v] = qkv();
    let nonsense = Values::random(9, [1, 1, 1, 3]);
    let others = ["key_lengths", "segments", "mask"].map(|name| (name, &nonsense, Dtype::F64));
    let tensors = [("q", &q, Dtype::F32), ("k", &k, Dtype::F32), ("v", &v, Dtype::F32)];
    write(&folder.path().join("in.safetensors"), &[&tensors[..], &others].concat());
    succeed(folder.path(), &[&IO[..], &["--mask", "causal"]].concat());
    let (expected, _) = attention([&q, &k, &v], None, |_, _, i, j| j <= i);
    let error = relative_error(&read(&folder.path().join("out.safetensors"), "out").0, &expected);
    assert!(error <= 1e-5, "{error:e}");
}

#[test]
fn a_mask_may_be_of_booleans() {
    let folder = tempdir().unwrap();
    let [q, k, v] = qkv();
    let mask = (0..2 * 24 * 24).map(|flat| f64::from(u8::from(flat % 5 < 3))).collect();
    let mask = Values { shape: vec![2, 1, 24, 24], values: mask };
    let tensors = [("q", &q, Dtype::F32), ("k", &k, Dtype::F32), ("v", &v, Dtype::F32)];
    for dtype in [Dtype::BOOL, Dtype::U8] {
        write(&folder.path().join("in.safetensors"), &[&tensors[..], &[("mask", &mask, dtype)]].concat());
        succeed(
            folder.path(),
            &[&IO[..], &["--mask", "dense", "--strategy", "ring", "--ranks", "4"]].concat(),
        );
        let attends = |b: usize, _, i: usize, j: usize| mask.values[(b * 24 + i) * 24 + j] != 0.0;
        let (expected, _) = attention([&q, &k, &v], None, attends);
        let error = relative_error(&read(&folder.path().join("out.safetensors"), "out").0, &expected);
        assert!(error <= 1e-5, "{dtype}: {error:e}");
    }
}

#[test]
fn a_scale_and_a_type_can_be_asked_for() {
    let folder = tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let tensors = qkv();
    write_qkv(&folder.path().join("in.safetensors"), &tensors);
    for (dtype, name, bound) in TYPES {
        let rounded = tensors.clone().map(|tensor| tensor.rounded(dtype));
        let (expected, _) = attention(rounded.each_ref(), Some(0.125), |_, _, _, _| true);
        let how = ["--dtype", name, "--scale", "0.125", "--strategy", "ring", "--ranks", "2"];
        succeed(folder.path(), &[&IO[..], &how].concat());
        let (out, found) = read(&output, "out");
        let error = relative_error(&out, &expected);
        assert!(error <= bound && found == dtype, "{name}: {error:e}");
    }
    assert_eq!(tensor_names(&output), ["out"]);
}

#[test]
fn a_nan_reaches_those_who_attend_it_and_nobody_else() {
    let folder = tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let mut tensors = qkv();
    // Batch 1, position 20, head 3, channel 7.
    tensors[2].values[((24 + 20) * 12 + 3) * 16 + 7] = f64::NAN;
    write_qkv(&folder.path().join("in.safetensors"), &tensors);
    for (mask, attended) in [("none", 0..24), ("causal", 20..24), ("window:2,4", 16..23)] {
        for (strategy, ranks) in runs() {
            let how = ["--strategy", strategy, "--ranks", ranks, "--mask", mask];
            succeed(folder.path(), &[&IO[..], &how].concat());
            for (flat, value) in read(&output, "out").0.values.into_iter().enumerate() {
                let (batch, position, head, channel) =
                    (flat / 16 / 12 / 24, flat / 16 / 12 % 24, flat / 16 % 12, flat % 16);
                let attends = (batch, head, channel) == (1, 3, 7) && attended.contains(&position);
                let where_ = format!("{strategy} x {ranks}, {mask}, position {position} of head {head}");
                assert_eq!(value.is_nan(), attends, "{where_}");
            }
        }
    }
}

#[test]
fn padding_is_never_read() {
    let folder = tempdir().unwrap();
    let mut tensors = qkv();
    let lengths = Values { shape: vec![2], values: vec![24.0, 10.0] };
    for tensor in &mut tensors[1..] {
        tensor.values[(24 + 10) * 12 * 16..].fill(f64::NAN);
    }
    let [q, k, v] = &tensors;
    let plain = [("q", q, Dtype::F32), ("k", k, Dtype::F32), ("v", v, Dtype::F32)];
    write(
        &folder.path().join("in.safetensors"),
        &[&plain[..], &[("key_lengths", &lengths, Dtype::I64)]].concat(),
    );
    let (expected, _) = attention(tensors.each_ref(), None, |b, _, _, j| (j as f64) < lengths.values[b]);
    for (strategy, ranks) in runs() {
        let how = ["--strategy", strategy, "--ranks", ranks, "--mask", "padding"];
        succeed(folder.path(), &[&IO[..], &how].concat());
        let error = relative_error(&read(&folder.path().join("out.safetensors"), "out").0, &expected);
        assert!(error <= 1e-5, "{strategy} x {ranks}: {error:e}");
    }
}

#[test]
fn the_layout_of_tensors_makes_no_difference_to_the_numbers() {
    let folder = tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let problem =
        Problem::new(Dtype::F32, Sizes { batch: 2, seq: [24, 24], heads: [4, 2], dim: 16, joint: 0 });
    let outs = LAYOUTS.map(|(scatter, gather, order)| {
        problem.write(&folder.path().join("in.safetensors"), order);
        let how = ["--strategy", "hybrid", "--ranks", "4", "--layout", "striped", "--mask", "causal"];
        succeed(folder.path(), &[&IO[..], &how, &["--scatter", scatter, "--gather", gather]].concat());
        read(&output, "out").0.permuted(order).values
    });
    assert_eq!(BSHD, LAYOUTS[0].2);
    assert!(outs.iter().all(|out| *out == outs[0]));
}
