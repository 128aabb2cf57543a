//! `--device cuda`: where there is a GPU, and where there is none.

use std::path::Path;

use safetensors::Dtype;
use tempfile::{TempDir, tempdir};

use crate::tensors::{Values, write};
use crate::{fail, names, succeed};

/// A folder with an `in.safetensors` that the GPU kernels take, but for its type.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    let tensor = Values::random(1, [1, 64, 4, 64]);
    let lengths = Values { shape: vec![1], values: vec![40.0] };
    let segments = Values { shape: vec![1, 64], values: vec![7.0; 64] };
    let tensors = ["q", "k", "v"].map(|name| (name, &tensor, Dtype::F32));
    let masks = [("key_lengths", &lengths, Dtype::I64), ("segments", &segments, Dtype::I32)];
    let tensors = [&tensors[..], &masks].concat();
    write(&folder.path().join("in.safetensors"), &tensors);
    folder
}

/// Command lines that need a GPU.
const WITH_GPU: [&[&str]; 8] = [
    &["--device", "cuda"],
    &[
        "--device",
        "cuda",
        "--strategy",
        "ring,hybrid",
        "--ranks",
        "4",
        "--layout",
        "zigzag",
        "--mask",
        "causal",
    ],
    &["run", "--device", "cuda", "--strategy", "ring", "--ranks", "2"],
    &["run", "--device", "cuda", "--input", "in.safetensors", "--dtype", "bf16"],
    &["run", "--device", "cuda", "--input", "in.safetensors", "--dtype", "f16", "--mask", "causal+padding"],
    &[
        "run",
        "--device",
        "cuda",
        "--input",
        "in.safetensors",
        "--dtype",
        "f16",
        "--backend",
        "sage",
        "--mask",
        "segments",
    ],
    &["bench", "--device", "cuda"],
    &["bench", "--device", "cuda", "--backend", "sage"],
];

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_how_to_get_one_with_it() {
    let folder = folder();
    for args in WITH_GPU {
        fail(
            folder.path(),
            args,
            2,
            &["this build has no CUDA", "--features cuda", "scripts/install-cuda-toolchain"],
        );
    }
    assert_eq!(names(folder.path()), ["in.safetensors"]);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn doctor_says_what_a_build_without_cuda_lacks() {
    let report = succeed(Path::new("."), &["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(["gpu_kernels", "cuda_driver", "gpus"].into_iter().all(|key| report[key].is_null()), "{report}");
    assert!(report["missing_for_cuda"].to_string().contains("--features cuda"), "{report}");
}

/// What stands in the way of a GPU, as `doctor` says it.
#[cfg(feature = "cuda")]
fn missing() -> Vec<String> {
    let report: serde_json::Value =
        serde_json::from_str(&succeed(Path::new("."), &["doctor", "--json"])).unwrap();
    assert!(report["gpu_kernels"]["architectures"][0].as_str().unwrap().starts_with("sm_"), "{report}");
    assert!(report["devices"].to_string().contains("cuda"), "{report}");
    let missing: Vec<String> = serde_json::from_value(report["missing_for_cuda"].clone()).unwrap();
    let checks = report["checks"].to_string();
    assert_eq!(missing.is_empty(), checks.contains("flash on cuda"), "{report}");
    missing
}

#[cfg(feature = "cuda")]
#[test]
fn without_a_gpu_every_command_says_what_is_missing_as_doctor_does() {
    let folder = folder();
    for missing in missing().iter().filter(|missing| missing.contains("is not available")) {
        for args in WITH_GPU {
            fail(folder.path(), args, 4, &[missing]);
        }
    }
    assert_eq!(names(folder.path()), ["in.safetensors"]);
}

#[cfg(feature = "cuda")]
#[test]
fn what_a_gpu_does_not_do_is_refused_before_it_is_looked_for() {
    let folder = folder();
    let refuse = |args: &[&str], code: i32, says: &[&str]| {
        fail(folder.path(), &[args, &["--device", "cuda"]].concat(), code, says);
    };
    for command in ["run", "bench"] {
        refuse(&[command, "--dtype", "f32"], 2, &["16-bit", "--dtype bf16"]);
        refuse(&[command, "--backend", "sage", "--dtype", "f32"], 2, &["`sage`", "16-bit", "--dtype bf16"]);
        refuse(&[command, "--threads", "2"], 2, &["`--threads`"]);
        refuse(&[command, "--strategy", "ulysses", "--ranks", "3"], 3, &["3 ranks"]);
    }
    refuse(&["run", "--input", "in.safetensors"], 2, &["16-bit", "--dtype bf16"]);
    refuse(&["run", "--input", "absent"], 4, &["cannot read `absent`"]);
    for args in [&["--lse"][..], &["--joint", "front"], &["--scatter", "2"], &["--output", "out.safetensors"]]
    {
        refuse(args, 2, &[args[0], "`--input`", "made-up tensors"]);
    }
    assert_eq!(names(folder.path()), ["in.safetensors"]);
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_agrees_with_itself_and_the_host() {
    let missing = missing();
    if !missing.is_empty() {
        let required = std::env::var("ATTN_REQUIRE_GPU").is_ok_and(|value| value == "1");
        assert!(!required, "ATTN_REQUIRE_GPU is 1, but there is missing: {}", missing.join("; "));
        println!("not run: {}", missing.join("; "));
        return;
    }
    let folder = folder();
    for args in WITH_GPU.iter().filter(|args| args.first() != Some(&"bench")) {
        let said = succeed(folder.path(), &[args, &["--json"][..]].concat());
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        for run in report["runs"].as_array().unwrap() {
            assert_eq!(run["device"], "cuda");
            let most = if args.contains(&"sage") { 1e-1 } else { 5e-3 };
            assert!(run["relative_error_cpu_f32"].as_f64().unwrap() < most, "{run}");
        }
    }
    let args =
        ["bench", "--device", "cuda", "--shape", "1,1024,8,128", "--strategy", "none,ring", "--ranks", "2"];
    for form in ["auto", "simple", "overlapped"] {
        let said = succeed(folder.path(), &[&args[..], &["--form", form, "--json"]].concat());
        let rows: Vec<serde_json::Value> =
            said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), 12);
        assert!(
            rows.iter().all(|row| row["median_ms"].as_f64().unwrap() > 0.0 && row["form"] == form),
            "{said}"
        );
    }
}
