//! Attention on tensors from a file, against the same in float64.

use safetensors::Dtype;
use tempfile::tempdir;

use crate::dense::{attention, concat, narrow};
use crate::succeed;
use crate::tensors::{BSHD, LAYOUTS, Values, read, relative_error, tensor_names, write};

/// Types, their names, and how far a result may be from float64.
const TYPES: [(Dtype, &str, f64); 3] =
    [(Dtype::F32, "f32", 1e-5), (Dtype::F16, "f16", 8e-4), (Dtype::BF16, "bf16", 4e-3)];

/// Every strategy on every number of ranks that 12 heads and 24 positions divide among.
fn runs() -> impl Iterator<Item = (&'static str, &'static str)> {
    let several = ["ulysses", "ring"]
        .into_iter()
        .flat_map(|strategy| ["1", "2", "3", "4", "6"].map(|ranks| (strategy, ranks)));
    std::iter::once(("none", "1")).chain(several)
}

/// Query, key and value of `seq` and `keys` positions.
fn qkv(dtype: Dtype, [seq, keys]: [usize; 2], [heads, kv_heads]: [usize; 2]) -> [Values; 3] {
    let key = [2, keys, kv_heads, 16];
    [(1, [2, seq, heads, 16]), (2, key), (3, key)]
        .map(|(seed, shape)| Values::random(seed, shape).rounded(dtype))
}

fn write_qkv(path: &std::path::Path, [q, k, v]: &[Values; 3], dtype: Dtype, order: [usize; 4]) {
    let [q, k, v] = [q, k, v].map(|tensor| tensor.permuted(order));
    write(path, &[("q", &q, dtype), ("k", &k, dtype), ("v", &v, dtype)]);
}

/// Runs all strategies on all numbers of ranks, types, kernels and layouts under one mask.
fn every_combination_is_attention(mask: &str) {
    let folder = tempdir().unwrap();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    for (dtype, _, bound) in TYPES {
        let tensors = qkv(dtype, [24, 24], [12, 12]);
        let [q, k, v] = &tensors;
        let (expected, _) = attention(q, k, v, None, mask == "causal");
        for (scatter, gather, order) in LAYOUTS {
            write_qkv(&input, &tensors, dtype, order);
            for backend in ["flash", "sdpa"] {
                for (strategy, ranks) in runs() {
                    let args = ["--input", "in.safetensors", "--output", "out.safetensors"];
                    let how =
                        ["--strategy", strategy, "--ranks", ranks, "--backend", backend, "--mask", mask];
                    let layout = ["--scatter", scatter, "--gather", gather, "--threads", "1"];
                    succeed(folder.path(), &[&args[..], &how, &layout].concat());
                    let (out, found) = read(&output, "out");
                    let error = relative_error(&out.permuted(order), &expected);
                    assert!(error <= bound && found == dtype, "{how:?} {layout:?} {dtype}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn every_combination_is_attention_without_a_mask() {
    every_combination_is_attention("none");
}

#[test]
fn every_combination_is_attention_under_a_causal_mask() {
    every_combination_is_attention("causal");
}

#[test]
fn lengths_may_differ_and_heads_be_shared() {
    let folder = tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    for (lengths, mask) in [([12, 24], "none"), ([12, 24], "causal"), ([24, 8], "none")] {
        let tensors = qkv(Dtype::F32, lengths, [12, 4]);
        let [q, k, v] = &tensors;
        let (expected, expected_lse) = attention(q, k, v, None, mask == "causal");
        write_qkv(&folder.path().join("in.safetensors"), &tensors, Dtype::F32, BSHD);
        for (strategy, ranks) in
            [("none", "1"), ("ulysses", "2"), ("ulysses", "4"), ("ring", "2"), ("ring", "4")]
        {
            let args = ["--input", "in.safetensors", "--output", "out.safetensors", "--lse", "--mask", mask];
            succeed(folder.path(), &[&args[..], &["--strategy", strategy, "--ranks", ranks]].concat());
            let error = relative_error(&read(&output, "out").0, &expected);
            assert!(error <= 1e-5, "{strategy} x {ranks}, {lengths:?}: {error:e}");
            let (lse, dtype) = read(&output, "lse");
            let error = relative_error(&lse, &expected_lse);
            assert!(
                error <= 1e-5 && dtype == Dtype::F32,
                "lse, {strategy} x {ranks}, {lengths:?}: {error:e}"
            );
        }
    }
}

#[test]
fn joint_tokens_stand_before_or_behind_the_others() {
    let folder = tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let dtype = Dtype::F32;
    let [q, k, v] = qkv(dtype, [24, 24], [12, 4]);
    let [jq, jk, jv] =
        [(4, 12), (5, 4), (6, 4)].map(|(seed, heads)| Values::random(seed, [2, 5, heads, 16]).rounded(dtype));
    for (scatter, gather, order) in LAYOUTS {
        let [sq, sk, sv, sjq, sjk, sjv] = [&q, &k, &v, &jq, &jk, &jv].map(|tensor| tensor.permuted(order));
        let plain = [("q", &sq, dtype), ("k", &sk, dtype), ("v", &sv, dtype)];
        let joint = [("joint_q", &sjq, dtype), ("joint_k", &sjk, dtype), ("joint_v", &sjv, dtype)];
        write(&folder.path().join("in.safetensors"), &[plain, joint].concat());
        for (side, joint_start, start) in [("front", 0, 5), ("rear", 24, 0)] {
            let pair = |joint: &Values, own: &Values| {
                if side == "front" { concat(joint, own, 1) } else { concat(own, joint, 1) }
            };
            let (out, lse) = attention(&pair(&jq, &q), &pair(&jk, &k), &pair(&jv, &v), None, false);
            for (strategy, ranks) in
                [("none", "1"), ("ulysses", "2"), ("ulysses", "4"), ("ring", "3"), ("ring", "4")]
            {
                let args =
                    ["--input", "in.safetensors", "--output", "out.safetensors", "--lse", "--joint", side];
                let how =
                    ["--strategy", strategy, "--ranks", ranks, "--scatter", scatter, "--gather", gather];
                succeed(folder.path(), &[&args[..], &how].concat());
                for (name, axis, whole, start, length) in [
                    ("out", 1, &out, start, 24),
                    ("joint_out", 1, &out, joint_start, 5),
                    ("lse", 2, &lse, start, 24),
                    ("joint_lse", 2, &lse, joint_start, 5),
                ] {
                    let (found, _) = read(&output, name);
                    let found = if name.ends_with("out") { found.permuted(order) } else { found };
                    let error = relative_error(&found, &narrow(whole, axis, start, length));
                    assert!(error <= 1e-5, "{name} {side} {how:?}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn a_scale_and_a_type_can_be_asked_for() {
    let folder = tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let tensors = qkv(Dtype::F32, [24, 24], [12, 12]);
    write_qkv(&folder.path().join("in.safetensors"), &tensors, Dtype::F32, BSHD);
    for (dtype, name, bound) in TYPES {
        let [q, k, v] = tensors.clone().map(|tensor| tensor.rounded(dtype));
        let (expected, _) = attention(&q, &k, &v, Some(0.125), false);
        let args =
            ["--input", "in.safetensors", "--output", "out.safetensors", "--dtype", name, "--scale", "0.125"];
        succeed(folder.path(), &[&args[..], &["--strategy", "ring", "--ranks", "2"]].concat());
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
    let mut tensors = qkv(Dtype::F32, [24, 24], [12, 12]);
    // Batch 1, position 20, head 3, channel 7.
    tensors[2].values[((24 + 20) * 12 + 3) * 16 + 7] = f64::NAN;
    write_qkv(&folder.path().join("in.safetensors"), &tensors, Dtype::F32, BSHD);
    for mask in ["none", "causal"] {
        for (strategy, ranks) in runs() {
            let args = ["--input", "in.safetensors", "--output", "out.safetensors", "--mask", mask];
            succeed(folder.path(), &[&args[..], &["--strategy", strategy, "--ranks", ranks]].concat());
            for (flat, value) in read(&output, "out").0.values.into_iter().enumerate() {
                let (batch, position, head, channel) =
                    (flat / 16 / 12 / 24, flat / 16 / 12 % 24, flat / 16 % 12, flat % 16);
                let attends = (batch, head, channel) == (1, 3, 7) && (mask == "none" || position >= 20);
                assert_eq!(
                    value.is_nan(),
                    attends,
                    "{strategy} x {ranks}, {mask}, position {position} of head {head}"
                );
            }
        }
    }
}

#[test]
fn many_runs_are_compared_when_nothing_is_written() {
    let folder = tempdir().unwrap();
    write_qkv(&folder.path().join("in.safetensors"), &qkv(Dtype::F32, [24, 24], [12, 12]), Dtype::F32, BSHD);
    let args = [
        "run",
        "--input",
        "in.safetensors",
        "--strategy",
        "none,ulysses",
        "--strategy",
        "ring",
        "--ranks",
        "2,3",
    ];
    let table = succeed(folder.path(), &args);
    assert_eq!(
        ["none", "ulysses", "ring"].map(|name| table.matches(&format!(" {name} ")).count()),
        [1, 2, 2],
        "{table}"
    );
    let json = succeed(folder.path(), &[&args[..], &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 5);
    assert!(report.get("output").is_none());
    for run in runs {
        assert_eq!((run["backend"].as_str(), run["dtype"].as_str()), (Some("flash"), Some("f32")));
        assert!(run["relative_error_one_rank"].as_f64().unwrap() < 1e-5, "{run}");
        assert_eq!(run["bytes_per_rank"].as_u64() > Some(0), run["ranks"].as_u64() > Some(1), "{run}");
    }
    let unchecked = succeed(folder.path(), &[&args[..], &["--json", "--no-check"]].concat());
    let report: serde_json::Value = serde_json::from_str(&unchecked).unwrap();
    assert!(report["runs"][1]["relative_error_one_rank"].is_null());
}
