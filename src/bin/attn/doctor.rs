//! `attn doctor`: what this build can do on this machine, and whether it does.

use std::fmt::Write;
use std::fs;
use std::thread::available_parallelism;

use attn::prelude::*;
use attn::{AttentionPipeline, DType, Device, ThreadComm};
use serde_json::{Value, json};

use crate::cli::{Backend, DoctorArgs};
use crate::digits;
use crate::failure::Failure;
use crate::pipelines::{FlashAttention, SdpaAttention};
use crate::report::{bytes, print};

/// How far a strategy may be from one rank on values of about 1.
const TOLERANCE: f32 = 1e-5;

/// Reports on this build and machine.
///
/// # Errors
/// If a check fails, or stdout cannot be written.
pub(crate) fn run(args: DoctorArgs) -> Result<(), Failure> {
    let checks = checks();
    let facts = facts();
    let text = if args.json { format!("{}\n", as_json(&facts, &checks)) } else { as_text(&facts, &checks) };
    print(&text)?;
    let failed: Vec<&str> =
        checks.iter().filter(|check| check.outcome.is_err()).map(|check| check.name).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::Internal(format!(
        "{} failed: {}",
        if failed.len() == 1 { "a check" } else { "checks" },
        failed.join(", ")
    )))
}

/// What is so: a key and one value or several.
type Fact = (&'static str, Value);

fn facts() -> Vec<Fact> {
    type Offered = <FlashAttention as ParallelAttention<ThreadComm<Cpu>, f32>>::Pipeline;
    let features = [
        ("sdpa", cfg!(feature = "sdpa")),
        ("flash", cfg!(feature = "flash")),
        ("cli", cfg!(feature = "cli")),
    ];
    let features: Vec<&str> = features.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    let [total, available] = ["MemTotal:", "MemAvailable:"].map(memory);
    vec![
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("target", env!("ATTN_BUILD_TARGET").into()),
        (
            "profile",
            format!("{}, opt-level {}", env!("ATTN_BUILD_PROFILE"), env!("ATTN_BUILD_OPT_LEVEL")).into(),
        ),
        ("rustc", env!("ATTN_BUILD_RUSTC").into()),
        ("features", features.into()),
        ("os", std::env::consts::OS.into()),
        ("arch", std::env::consts::ARCH.into()),
        ("cores", available_parallelism().map_or(1, |cores| cores.get()).into()),
        ("cpu", cpu_model().into()),
        ("cpu_features", cpu_features().into()),
        ("memory_bytes", total.into()),
        ("memory_available_bytes", available.into()),
        ("strategies", Offered::OFFERED.to_vec().into()),
        ("kernels", [Backend::Flash, Backend::Sdpa].map(Backend::name).to_vec().into()),
        ("communicators", vec!["threads"].into()),
        ("devices", vec![Cpu::NAME].into()),
        ("elements", [DType::F32, DType::F16, DType::BF16].map(|dtype| dtype.to_string()).to_vec().into()),
    ]
}

/// The processor's name, where the system tells it.
fn cpu_model() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
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

/// Something tried out.
struct Check {
    name: &'static str,
    outcome: Result<String, Failure>,
}

fn checks() -> Vec<Check> {
    let mut checks = vec![Check { name: "bundled model", outcome: digits::check() }];
    for (name, strategy, backend) in [
        ("ulysses with flash", "ulysses", Backend::Flash),
        ("ulysses with sdpa", "ulysses", Backend::Sdpa),
        ("ring with flash", "ring", Backend::Flash),
        ("ring with sdpa", "ring", Backend::Sdpa),
    ] {
        let outcome = match backend {
            Backend::Flash => agrees(&FlashAttention, strategy),
            Backend::Sdpa => agrees(&SdpaAttention, strategy),
        };
        checks.push(Check { name, outcome });
    }
    checks
}

/// Runs a strategy on two ranks, and compares with one.
fn agrees<A>(attention: &A, strategy: &str) -> Result<String, Failure>
where
    A: ParallelAttention<ThreadComm<Cpu>, f32> + Sync,
{
    let (two, one) = (attend(attention, strategy, 2)?, attend(attention, "none", 1)?);
    let difference = two
        .iter()
        .zip(&one)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most, d| if d.is_nan() { d } else { d.max(most) });
    let said = format!("two ranks differ from one by {difference:.1e}");
    // Written so that a difference that is not a number is a failure too.
    if two.len() == one.len() && difference <= TOLERANCE { Ok(said) } else { Err(Failure::Internal(said)) }
}

/// Attention over 32 positions of values that look random, the same whatever the number of ranks.
fn attend<A>(attention: &A, strategy: &str, ranks: usize) -> Result<Vec<f32>, Failure>
where
    A: ParallelAttention<ThreadComm<Cpu>, f32> + Sync,
{
    const SEQ: usize = 32;
    let config = ParallelConfig::strategy(strategy);
    let shards = World::threads(ranks).run(|comm| {
        let (first, share) = (comm.rank() * SEQ / comm.size(), SEQ / comm.size());
        let mut session = Session::open_with(comm, &config)?;
        let shape = [1, share, 4, 16];
        let random = |seed: usize| Tensor::from_fn(shape, move |[_, s, h, d]| noise([seed, first + s, h, d]));
        let (q, k, v) = (random(1)?, random(2)?, random(3)?);
        let out = attention.attend(&mut session, &q, &k, &v, &AttentionMetadata::default())?;
        Ok::<_, Failure>(out.as_slice().to_vec())
    })?;
    Ok(shards.concat())
}

/// A value between -1 and 1 for an index.
fn noise(index: [usize; 4]) -> f32 {
    let mix = |state: u32, part: usize| (state ^ part as u32).wrapping_mul(0x9E37_79B1).rotate_left(13);
    let bits = index.into_iter().fold(0x2545_F491, mix).wrapping_mul(0x85EB_CA6B);
    f32::from(((bits >> 16) as u16).cast_signed()) / 32768.0
}

fn as_json(facts: &[Fact], checks: &[Check]) -> Value {
    let mut report: serde_json::Map<String, Value> =
        facts.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let check = |check: &Check| {
        let (ok, detail) = (check.outcome.is_ok(), detail(check));
        json!({ "name": check.name, "ok": ok, "detail": detail })
    };
    report.insert("checks".to_owned(), checks.iter().map(check).collect());
    report.into()
}

fn as_text(facts: &[Fact], checks: &[Check]) -> String {
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::from("unknown"),
        other => other.to_string(),
    };
    let mut text = String::new();
    for (key, value) in facts {
        let value = match value {
            Value::Number(number) if key.ends_with("_bytes") => bytes(number.as_u64().unwrap_or_default()),
            Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
            value => plain(value),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<18}{value}", key.trim_end_matches("_bytes").replace('_', " "));
    }
    text.push('\n');
    for check in checks {
        let verdict = if check.outcome.is_ok() { "ok" } else { "FAILED" };
        let _ = writeln!(text, "{:<20}{verdict}: {}", check.name, detail(check));
    }
    text
}

fn detail(check: &Check) -> String {
    match &check.outcome {
        Ok(said) => said.clone(),
        Err(failure) => failure.to_string(),
    }
}
