//! `attn bench`: how long attention takes, what its parts do, and what they would take at least.

mod attention;
#[cfg(any(feature = "cuda", all(test, feature = "sim")))]
mod forms;
mod kernels;
mod problem;
mod row;
mod times;
#[cfg(any(feature = "cuda", all(test, feature = "sim")))]
mod tune;

#[cfg(feature = "cuda")]
use attn::Sage;
#[cfg(feature = "cuda")]
use attn::cuda::{Cuda, FlashSm80, Half, SageSm80};
use attn::prelude::*;
use attn::{CarriesState, DType, Flash, KeyPlacement, Mask, Sdpa, Sharding, Signature, ThreadComm};
use half::{bf16, f16};

#[cfg(feature = "cuda")]
use self::forms::{
    OverlappedAttention, OverlappedFlash, SageSm80Attention, SimpleAttention, SimpleFlash, Sm80Attention,
};
use self::problem::Problem;
use self::row::{Report, Row};
use crate::cli::{Backend, BenchArgs, DeviceName, Form, TypeName};
use crate::failure::Failure;
use crate::machine::{self, Machine};
#[cfg(feature = "cuda")]
use crate::pipelines::SageAttention;
use crate::pipelines::{FlashAttention, SdpaAttention};
use crate::plan::{self, Run};
use crate::report;

/// Of the exchanges here that are no part of attention.
const SIGNATURE: Signature = Signature {
    strategy: "none",
    stage: "bench",
    call: 0,
    dtype: DType::F32,
    query: [0; 4],
    key: [0; 4],
    keys: KeyPlacement::Sharded,
    joint: (0, JointStrategy::Front),
    sharding: Sharding::ONE,
    mask: Mask::NONE,
    digest: 0,
    scale_bits: 0,
    edges: 0,
    lse: false,
};

/// Measures, and reports.
///
/// # Errors
/// If the arguments do not fit each other, memory cannot be had or the device reports an error.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    machine::check(args.device, args.backend, &args.strategy, args.threads)?;
    let has_form = match args.backend {
        Backend::Flash => true,
        Backend::Sage => matches!(args.form, Some(Form::Auto | Form::Sm80)),
        Backend::Sdpa => false,
    };
    if args.form.is_some() && !(args.device == DeviceName::Cuda && has_form) {
        return Err(Failure::Usage(String::from(
            "`--form` is for the GPU's kernels `flash` and (auto, sm80) `sage`: say `--device cuda` too, and one of these",
        )));
    }
    if args.tune.is_some()
        && (args.device, args.backend, args.form) != (DeviceName::Cuda, Backend::Flash, None)
    {
        return Err(Failure::Usage(String::from(
            "`--tune` is for the GPU's kernel `flash`: say `--device cuda` too, and leave `--backend` and `--form` out",
        )));
    }
    match (args.device, args.dtype) {
        (DeviceName::Cpu, None | Some(TypeName::F32)) => on_cpu::<f32>(args),
        (DeviceName::Cpu, Some(TypeName::F16)) => on_cpu::<f16>(args),
        (DeviceName::Cpu, Some(TypeName::Bf16)) => on_cpu::<bf16>(args),
        #[cfg(feature = "cuda")]
        (DeviceName::Cuda, None | Some(TypeName::Bf16)) => on_cuda::<bf16>(args),
        #[cfg(feature = "cuda")]
        (DeviceName::Cuda, Some(TypeName::F16)) => on_cuda::<f16>(args),
        #[cfg(feature = "cuda")]
        (DeviceName::Cuda, Some(TypeName::F32)) if args.backend == Backend::Sdpa => {
            measure::<Cuda, _, _, f32>(&SdpaAttention, &Sdpa, args)
        }
        (DeviceName::Cuda, _) => Err(machine::no_f32_on_tensor_cores(args.backend)),
    }
}

fn on_cpu<T: Element>(args: &BenchArgs) -> Result<(), Failure>
where
    FlashAttention: ParallelAttention<ThreadComm<Cpu>, T>,
    SdpaAttention: ParallelAttention<ThreadComm<Cpu>, T>,
    Flash: CarriesState<Cpu, T>,
    Sdpa: CarriesState<Cpu, T>,
{
    match args.backend {
        Backend::Flash => measure::<Cpu, _, _, T>(&FlashAttention, &Flash, args),
        Backend::Sdpa => measure::<Cpu, _, _, T>(&SdpaAttention, &Sdpa, args),
        Backend::Sage => Err(machine::no_sage_on_the_host()),
    }
}

#[cfg(feature = "cuda")]
fn on_cuda<T: Half>(args: &BenchArgs) -> Result<(), Failure> {
    if let Some(table) = &args.tune {
        return tune::run::<Cuda, T>(args, table);
    }
    match (args.backend, args.form.unwrap_or_default()) {
        (Backend::Sdpa, _) => measure::<Cuda, _, _, T>(&SdpaAttention, &Sdpa, args),
        (Backend::Sage, Form::Sm80) => measure::<Cuda, _, _, T>(&SageSm80Attention, &SageSm80, args),
        (Backend::Sage, _) => measure::<Cuda, _, _, T>(&SageAttention, &Sage, args),
        (_, Form::Auto) => measure::<Cuda, _, _, T>(&FlashAttention, &Flash, args),
        (_, Form::Simple) => measure::<Cuda, _, _, T>(&SimpleAttention, &SimpleFlash::default(), args),
        (_, Form::Overlapped) => {
            measure::<Cuda, _, _, T>(&OverlappedAttention, &OverlappedFlash::default(), args)
        }
        (_, Form::Sm80) => measure::<Cuda, _, _, T>(&Sm80Attention, &FlashSm80, args),
    }
}

/// Measures a kernel and the attention that is built on it, and reports.
fn measure<D, A, K, T>(attention: &A, kernel: &K, args: &BenchArgs) -> Result<(), Failure>
where
    D: Machine,
    A: ParallelAttention<ThreadComm<D>, T> + Sync,
    K: CarriesState<D, T>,
    T: Element,
{
    let runs = plan::runs(&args.strategy, &args.ranks, &args.sharing, |_| &[1])?;
    plan::check_threads(&runs, args.threads)?;
    let mut problem = Problem::new::<T>(args, &runs)?;
    if problem.gemm_tflops.is_none() {
        problem.gemm_tflops = D::product_tflops(T::DTYPE)?;
    }
    let rows = rows::<D, A, K, T>(attention, kernel, &runs, &problem)?;
    let report = Report { problem: &problem, dtype: T::DTYPE, device: D::CALLED, model: D::model()?, rows };
    report::print(&if args.json { report.json() } else { report.text() })
}

/// Of every run attention and its phases, and then the kernels round it.
fn rows<D, A, K, T>(attention: &A, kernel: &K, runs: &[Run], problem: &Problem) -> Result<Vec<Row>, Failure>
where
    D: Machine,
    A: ParallelAttention<ThreadComm<D>, T> + Sync,
    K: CarriesState<D, T>,
    T: Element,
{
    let mut rows = Vec::new();
    for &run in runs {
        rows.extend(attention::rows::<D, A, T>(attention, run, problem)?);
    }
    if let Some(ranks) = problem.reshard_ranks(runs) {
        rows.extend(kernels::reshard::<D, T>(problem, ranks)?);
    }
    rows.extend(kernels::state::<D, K, T>(kernel, problem)?);
    Ok(rows)
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use attn::Sage;
    use attn::cuda::{FlashSm80, SageSm80, Simulated};

    use super::forms::{
        OverlappedAttention, OverlappedFlash, SageSm80Attention, SimpleAttention, SimpleFlash, Sm80Attention,
    };
    use super::*;
    use crate::cli::{SharingArgs, Strategy};
    use crate::pipelines::SageAttention;

    /// Of a small problem on a GPU.
    pub(super) fn args() -> BenchArgs {
        BenchArgs {
            shape: Some([1, 128, 2, 64]),
            seq_k: None,
            kv_heads: None,
            dtype: None,
            backend: Backend::Flash,
            mask: Span::Causal.into(),
            strategy: vec![Strategy::Ring],
            ranks: vec![2],
            sharing: SharingArgs::default(),
            threads: None,
            device: DeviceName::Cuda,
            form: None,
            tune: None,
            runs: 1,
            warmup: Some(0),
            gemm_tflops: None,
            json: false,
        }
    }

    #[test]
    fn every_form_is_measured_on_a_gpu() {
        let args = args();
        let runs = plan::runs(&args.strategy, &args.ranks, &args.sharing, |_| &[1]).unwrap();
        let problem = Problem::new::<bf16>(&args, &runs).unwrap();
        let (simple, overlapped) = (SimpleFlash::default(), OverlappedFlash::default());
        assert!(Simulated::product_tflops(DType::BF16).unwrap().unwrap() > 0.0);
        for rows in [
            rows::<Simulated, _, _, bf16>(&FlashAttention, &Flash, &runs, &problem),
            rows::<Simulated, _, _, bf16>(&SimpleAttention, &simple, &runs, &problem),
            rows::<Simulated, _, _, bf16>(&OverlappedAttention, &overlapped, &runs, &problem),
            rows::<Simulated, _, _, bf16>(&Sm80Attention, &FlashSm80, &runs, &problem),
            rows::<Simulated, _, _, bf16>(&SageAttention, &Sage, &runs, &problem),
            rows::<Simulated, _, _, bf16>(&SageSm80Attention, &SageSm80, &runs, &problem),
        ] {
            let rows = rows.unwrap();
            assert_eq!(rows.len(), 8);
            assert!(rows.iter().all(|row| row.times.least > 0.0), "{rows:?}");
        }
    }
}
