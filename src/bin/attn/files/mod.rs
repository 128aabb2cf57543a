//! Attention on tensors from a safetensors file, or on made-up ones.

mod compare;
mod compute;
mod input;
mod job;
mod masks;
mod positions;
mod source;
mod write;

#[cfg(feature = "cuda")]
use attn::cuda::Cuda;
use attn::prelude::*;
use attn::{AttentionPipeline, DType, Error, ThreadComm};
use half::{bf16, f16};

use self::compute::{Results, Settings};
use self::input::{Inputs, PLAIN};
use self::job::Job;
use self::masks::Masks;
use self::source::Source;
use crate::cli::{Backend, DeviceName, RunArgs};
use crate::failure::Failure;
use crate::machine::{self, Machine};
use crate::pipelines::{FlashAttention, SdpaAttention};
use crate::plan::Run;
use crate::report::{Comparison, Report, Row};

/// Against one rank on the same device, and against the host.
static COMPARISONS: [Comparison; 3] = [
    Comparison { title: "rel. error", key: "relative_error_one_rank" },
    Comparison { title: "diff one rank", key: "max_diff_one_rank" },
    Comparison { title: "rel. error cpu f32", key: "relative_error_cpu_f32" },
];

/// The tensors that are made up.
const MADE_UP: [usize; 4] = [1, 2048, 8, 128];

/// Runs attention on a file, or without one on tensors that look random.
///
/// # Errors
/// If the file cannot be read or its tensors do not fit, the device is not there, the output cannot be written, or
/// results differ.
pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    machine::check(args.device, args.backend, args.threads)?;
    let job = Job::new(args)?;
    let Some(input) = &args.input else {
        return job.on_device(DType::BF16, &Tensors::MadeUp);
    };
    let bytes = source::read(input)?;
    let source = Source::parse(input, &bytes)?;
    // A file of another type is no reason to stop if the type to compute in is given.
    let dtype = if args.dtype.is_none() { source.one_dtype(&PLAIN)? } else { DType::F32 };
    job.on_device(dtype, &Tensors::Stored(source))
}

/// Where tensors come from.
enum Tensors<'a> {
    Stored(Source<'a>),
    MadeUp,
}

impl Tensors<'_> {
    fn load<T: Element>(&self, settings: &Settings) -> Result<(Inputs<T>, Masks), Failure> {
        match self {
            Self::Stored(source) => {
                let inputs = Inputs::load(source, settings)?;
                let masks = Masks::load(source, settings.mask, inputs.sizes())?;
                Ok((inputs, masks))
            }
            Self::MadeUp => Ok((Inputs::random(MADE_UP)?, Masks::NONE)),
        }
    }
}

impl Job<'_> {
    /// Computes in the type asked for, or else in the tensors' own.
    fn on_device(&self, own: DType, tensors: &Tensors<'_>) -> Result<(), Failure> {
        let dtype = self.args.dtype.map_or(own, DType::from);
        match (self.args.device, dtype) {
            (DeviceName::Cpu, DType::F32) => self.on_cpu::<f32>(tensors.load(&self.settings)?),
            (DeviceName::Cpu, DType::F16) => self.on_cpu::<f16>(tensors.load(&self.settings)?),
            (DeviceName::Cpu, DType::BF16) => self.on_cpu::<bf16>(tensors.load(&self.settings)?),
            #[cfg(feature = "cuda")]
            (DeviceName::Cuda, DType::F16) => self.on_cuda::<f16>(tensors.load(&self.settings)?),
            #[cfg(feature = "cuda")]
            (DeviceName::Cuda, DType::BF16) => self.on_cuda::<bf16>(tensors.load(&self.settings)?),
            (DeviceName::Cuda, DType::F32) => Err(machine::no_f32_on_cuda()),
            (_, other) => Err(Failure::Internal(format!("elements of type {other} are not provided for"))),
        }
    }

    fn on_cpu<T: Element>(&self, inputs: (Inputs<T>, Masks)) -> Result<(), Failure>
    where
        FlashAttention: ParallelAttention<ThreadComm<Cpu>, T>,
        SdpaAttention: ParallelAttention<ThreadComm<Cpu>, T>,
    {
        match self.args.backend {
            Backend::Flash => self.all_runs::<_, Cpu, T>(&FlashAttention, inputs),
            Backend::Sdpa => self.all_runs::<_, Cpu, T>(&SdpaAttention, inputs),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda<T: Element>(&self, inputs: (Inputs<T>, Masks)) -> Result<(), Failure>
    where
        FlashAttention: ParallelAttention<ThreadComm<Cuda>, T>,
    {
        self.all_runs::<_, Cuda, T>(&FlashAttention, inputs)
    }

    /// Computes all runs, writes and reports.
    fn all_runs<A, D, T>(&self, attention: &A, inputs: (Inputs<T>, Masks)) -> Result<(), Failure>
    where
        A: ParallelAttention<ThreadComm<D>, T> + Sync,
        D: Machine,
        T: Element,
    {
        let Computed { rows, errors, last } = self.compute::<A, D, T>(attention, inputs)?;
        let bound = tolerance(T::DTYPE);
        let output = self.output.as_ref().filter(|_| errors.iter().all(|error| *error <= bound));
        if let (Some(output), Some(results)) = (output, &last) {
            output.write(|file| write::results(file, results, &self.settings))?;
        }
        Report {
            device: D::CALLED,
            backend: self.args.backend,
            dtype: T::DTYPE,
            mask: self.settings.mask,
            keys: self.settings.keys,
            comparisons: comparisons(D::CALLED),
            rows,
            written: output.map(|output| ("output", output.name())),
        }
        .print(self.args.json)?;
        for (error, other) in errors.into_iter().zip(["one rank", "the host's kernel in f32"]) {
            if error > bound {
                return Err(Failure::Tolerance(format!(
                    "the relative error against {other} is {error:.1e}, more than the {bound:.0e} that rounding may \
                     explain in {}; nothing was written",
                    T::DTYPE
                )));
            }
        }
        Ok(())
    }

    /// Computes all runs, and what they are compared with.
    fn compute<A, D, T>(
        &self,
        attention: &A,
        (inputs, masks): (Inputs<T>, Masks),
    ) -> Result<Computed<T>, Failure>
    where
        A: ParallelAttention<ThreadComm<D>, T> + Sync,
        D: Machine,
        T: Element,
    {
        let settings = &self.settings;
        let (mask, takes) = (settings.mask, A::Pipeline::MASKS);
        if !takes.takes(mask) {
            return Err(Error::MaskKind { mask, takes }.into());
        }
        for run in &self.runs {
            inputs.check_split(*run, settings.keys)?;
        }
        // Whether the device is there is worth knowing before the host has computed anything.
        let queue = D::queue()?;
        let (check, elsewhere) = (!self.args.no_check, D::CALLED != DeviceName::Cpu);
        let on_host =
            || compute::run(&FlashAttention, Run::ONE_RANK, &inputs.cast::<f32>()?, &masks, settings);
        let host = (check && elsewhere).then(on_host).transpose()?;
        let masks = masks.upload::<D>(&queue)?;
        let compute = |run: Run| compute::run::<A, D, T>(attention, run, &inputs, &masks, settings);
        let alone = self.runs.iter().all(Run::is_one_rank);
        let baseline = (check && !alone).then(|| compute(Run::ONE_RANK)).transpose()?;

        let mut computed =
            Computed { rows: Vec::with_capacity(self.runs.len()), errors: [0.0; 2], last: None };
        for &run in &self.runs {
            let (results, timing) = compute(run)?;
            let from_one = baseline.as_ref().map(|(one, _)| results.difference(one));
            let from_host = host.as_ref().map(|(host, _)| results.difference(host).relative);
            let mut errors = vec![from_one.map(|d| d.relative), from_one.map(|d| d.largest), from_host];
            for (worst, error) in computed.errors.iter_mut().zip([errors[0], from_host]) {
                *worst = worst.max(error.unwrap_or(0.0));
            }
            errors.truncate(comparisons(D::CALLED).len());
            computed.rows.push(Row { run, timing, errors });
            computed.last = Some(results);
        }
        Ok(computed)
    }
}

/// What came of all runs.
struct Computed<T> {
    rows: Vec<Row>,
    /// The largest relative errors: against one rank, and against the host.
    errors: [f64; 2],
    /// Of the last run.
    last: Option<Results<T>>,
}

/// The host is compared with itself on one rank alone.
fn comparisons(device: DeviceName) -> &'static [Comparison] {
    if device == DeviceName::Cpu { &COMPARISONS[..2] } else { &COMPARISONS }
}

/// How large a relative error may be. Strategies differ in the order of their sums, which makes less than 1e-6 in f32,
/// more where values nearly cancel, and at most a last place in 16 bits (2e-5 in f16, 7e-5 in bf16); the host's kernel
/// rounds no weights to 16 bits, as a GPU's does. A mistake makes much more than this.
const fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2e-3,
        DType::BF16 => 8e-3,
        _ => 1e-4,
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use attn::Mask;
    use attn::cuda::Simulated;

    use super::*;

    #[test]
    fn strategies_on_a_gpu_agree_with_one_rank_and_the_host() {
        let args = RunArgs { device: DeviceName::Cuda, ..RunArgs::default() };
        let masks = [Span::Full, Span::Causal, Span::Window { left: 40, right: 3 }].map(Mask::from);
        let padding = Mask { key_lengths: true, ..Mask::from(Span::Causal) };
        for mask in masks.into_iter().chain([padding]) {
            let mut job = Job::new(&args).unwrap();
            job.settings.mask = mask;
            let inputs = Inputs::<bf16>::random([1, 256, 4, 64]).unwrap();
            let masks = Masks { key_lengths: mask.key_lengths.then(|| vec![200]), ..Masks::NONE };
            let computed = job.compute::<_, Simulated, bf16>(&FlashAttention, (inputs, masks)).unwrap();
            assert_eq!(computed.rows.len(), 8);
            let [from_one, from_host] = computed.errors;
            assert!(from_one < 4e-3 && 0.0 < from_host && from_host < 4e-3, "{mask}: {from_one} {from_host}");
        }
    }
}
