//! What is so, on this machine and in this build.

use std::fs;
use std::thread::available_parallelism;

use attn::prelude::*;
use attn::{AttentionPipeline, DType, Device, ThreadComm};
use serde_json::Value;

use super::{ranks, tools};
use crate::cli::Backend;
use crate::machine;
use crate::pipelines::FlashAttention;
use crate::report::bytes;

/// What is so: a key, and a value in JSON and in words.
pub(super) struct Fact {
    pub(super) key: &'static str,
    pub(super) value: Value,
    pub(super) text: String,
}

impl Fact {
    /// A fact whose words are the value's own.
    pub(super) fn new(key: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let text = match &value {
            Value::Number(number) if key.ends_with("_bytes") => bytes(number.as_u64().unwrap_or_default()),
            Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
            value => plain(value),
        };
        Self { key, value, text }
    }

    /// A fact that takes other words.
    pub(super) fn said(key: &'static str, value: impl Into<Value>, text: impl Into<String>) -> Self {
        Self { key, value: value.into(), text: text.into() }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::from("unknown"),
        other => other.to_string(),
    }
}

pub(super) fn facts() -> Vec<Fact> {
    type Offered = <FlashAttention as ParallelAttention<ThreadComm<Cpu>, f32>>::Pipeline;
    let features = [
        ("sdpa", cfg!(feature = "sdpa")),
        ("flash", cfg!(feature = "flash")),
        ("sage", cfg!(feature = "sage")),
        ("cli", cfg!(feature = "cli")),
        ("cuda", cfg!(feature = "cuda")),
        ("sim", cfg!(feature = "sim")),
        ("nccl", cfg!(feature = "nccl")),
        ("mpi", cfg!(feature = "mpi")),
    ];
    let features: Vec<&str> = features.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    let kernels = [(Backend::Flash, true), (Backend::Sdpa, true), (Backend::Sage, cfg!(feature = "cuda"))];
    let kernels: Vec<&str> =
        kernels.into_iter().filter(|(_, on)| *on).map(|(kernel, _)| kernel.name()).collect();
    let devices = if cfg!(feature = "cuda") { vec![Cpu::NAME, "cuda"] } else { vec![Cpu::NAME] };
    let communicators =
        [("threads", true), ("tcp", true), ("mpi", cfg!(feature = "mpi")), ("nccl", cfg!(feature = "nccl"))];
    let communicators: Vec<&str> =
        communicators.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    let profile = format!("{}, opt-level {}", env!("ATTN_BUILD_PROFILE"), env!("ATTN_BUILD_OPT_LEVEL"));
    let [total, available] = ["MemTotal:", "MemAvailable:"].map(memory);
    let mut facts = vec![
        Fact::new("version", env!("CARGO_PKG_VERSION")),
        Fact::new("target", env!("ATTN_BUILD_TARGET")),
        Fact::new("profile", profile),
        Fact::new("rustc", env!("ATTN_BUILD_RUSTC")),
        Fact::new("features", features),
        Fact::new("os", std::env::consts::OS),
        Fact::new("arch", std::env::consts::ARCH),
        Fact::new("cores", available_parallelism().map_or(1, |cores| cores.get())),
        Fact::new("cpu", machine::model()),
        Fact::new("cpu_features", cpu_features()),
        Fact::new("memory_bytes", total),
        Fact::new("memory_available_bytes", available),
        Fact::new("strategies", Offered::OFFERED.to_vec()),
        Fact::new("kernels", kernels),
        Fact::new("communicators", communicators),
        Fact::new("devices", devices),
        Fact::new("elements", [DType::F32, DType::F16, DType::BF16].map(|dtype| dtype.to_string()).to_vec()),
    ];
    facts.extend(ranks::facts());
    facts.extend(tools::facts());
    facts
}

/// Bytes of memory, where the system tells them.
fn memory(key: &str) -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Those of the processor's instruction sets that matter to the kernels.
fn cpu_features() -> Vec<&'static str> {
    macro_rules! detected {
        ($detect:ident: $($name:tt)*) => {
            [$(($name, std::arch::$detect!($name))),*].into_iter().filter(|(_, here)| *here).map(|(name, _)| name).collect()
        };
    }
    #[cfg(target_arch = "x86_64")]
    return detected!(is_x86_feature_detected:
        "sse4.2" "avx" "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512vl" "avx512bf16" "avx512vnni" "avx512fp16");
    #[cfg(target_arch = "aarch64")]
    return detected!(is_aarch64_feature_detected: "neon" "fp16" "bf16" "dotprod" "sve");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Vec::new();
}
