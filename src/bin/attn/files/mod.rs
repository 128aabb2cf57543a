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
#[cfg(feature = "cuda")]
use crate::pipelines::SageAttention;
use crate::pipelines::{FlashAttention, SdpaAttention};
use crate::plan::Run;
use crate::ranks::{self, OnRanks, Ranks, Threads};
use crate::report::{Comparison, Report, Row, Timing};

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
/// results differ; if ranks do not find each other, or fail.
pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    machine::check(args.device, args.backend, &args.strategy, args.threads)?;
    ranks::start(args, &Errand { args })
}

/// What the command line asks for, to be done on ranks.
struct Errand<'a> {
    args: &'a RunArgs,
}

impl OnRanks for Errand<'_> {
    fn on_cpu<R: Ranks<Cpu>>(&self, ranks: &R) -> Result<(), Failure> {
        let job = ranks.agree(Job::new(self.args, ranks.world(), ranks.reports()))?;
        let bytes = ranks.agree(job.read())?;
        let (dtype, tensors) = ranks.agree(job.tensors(&bytes))?;
        match (self.args.backend, dtype) {
            (Backend::Flash, DType::F32) => job.all_runs::<_, R, Cpu, f32>(&FlashAttention, ranks, &tensors),
            (Backend::Flash, DType::F16) => job.all_runs::<_, R, Cpu, f16>(&FlashAttention, ranks, &tensors),
            (Backend::Flash, DType::BF16) => {
                job.all_runs::<_, R, Cpu, bf16>(&FlashAttention, ranks, &tensors)
            }
            (Backend::Sdpa, DType::F32) => job.all_runs::<_, R, Cpu, f32>(&SdpaAttention, ranks, &tensors),
            (Backend::Sdpa, DType::F16) => job.all_runs::<_, R, Cpu, f16>(&SdpaAttention, ranks, &tensors),
            (Backend::Sdpa, DType::BF16) => job.all_runs::<_, R, Cpu, bf16>(&SdpaAttention, ranks, &tensors),
            (Backend::Sage, _) => ranks.agree(Err(machine::no_sage_on_the_host())),
            (_, other) => ranks.agree(Err(not_provided_for(other))),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda<R: Ranks<Cuda>>(&self, ranks: &R) -> Result<(), Failure> {
        let job = ranks.agree(Job::new(self.args, ranks.world(), ranks.reports()))?;
        let bytes = ranks.agree(job.read())?;
        let (dtype, tensors) = ranks.agree(job.tensors(&bytes))?;
        match (self.args.backend, dtype) {
            (Backend::Flash, DType::F16) => job.all_runs::<_, R, Cuda, f16>(&FlashAttention, ranks, &tensors),
            (Backend::Flash, DType::BF16) => {
                job.all_runs::<_, R, Cuda, bf16>(&FlashAttention, ranks, &tensors)
            }
            (backend @ (Backend::Flash | Backend::Sage), DType::F32) => {
                ranks.agree(Err(machine::no_f32_on_tensor_cores(backend)))
            }
            (Backend::Sdpa, DType::F32) => job.all_runs::<_, R, Cuda, f32>(&SdpaAttention, ranks, &tensors),
            (Backend::Sdpa, DType::F16) => job.all_runs::<_, R, Cuda, f16>(&SdpaAttention, ranks, &tensors),
            (Backend::Sdpa, DType::BF16) => job.all_runs::<_, R, Cuda, bf16>(&SdpaAttention, ranks, &tensors),
            (Backend::Sage, DType::F16) => job.all_runs::<_, R, Cuda, f16>(&SageAttention, ranks, &tensors),
            (Backend::Sage, DType::BF16) => job.all_runs::<_, R, Cuda, bf16>(&SageAttention, ranks, &tensors),
            (_, other) => ranks.agree(Err(not_provided_for(other))),
        }
    }
}

fn not_provided_for(dtype: DType) -> Failure {
    Failure::Internal(format!("elements of type {dtype} are not provided for"))
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
    /// The whole input file; nothing if tensors are made up.
    fn read(&self) -> Result<Vec<u8>, Failure> {
        self.args.input.as_deref().map_or_else(|| Ok(Vec::new()), source::read)
    }

    /// Where tensors come from, and the type to compute in: the one asked for, or else their own.
    fn tensors<'b>(&'b self, bytes: &'b [u8]) -> Result<(DType, Tensors<'b>), Failure> {
        let asked = self.args.dtype.map(DType::from);
        let Some(input) = &self.args.input else {
            return Ok((asked.unwrap_or(DType::BF16), Tensors::MadeUp));
        };
        let source = Source::parse(input, bytes)?;
        // A file of another type is no reason to stop if the type to compute in is given.
        let dtype = asked.map_or_else(|| source.one_dtype(&PLAIN), Ok)?;
        Ok((dtype, Tensors::Stored(source)))
    }

    /// Computes all runs; the reporter writes and reports.
    fn all_runs<A, R, D, T>(&self, attention: &A, ranks: &R, tensors: &Tensors<'_>) -> Result<(), Failure>
    where
        A: ParallelAttention<R::Comm, T> + ParallelAttention<ThreadComm<D>, T> + Sync,
        R: Ranks<D>,
        D: Machine,
        T: Element,
    {
        let loaded = ranks.agree(tensors.load(&self.settings))?;
        let computed = self.compute::<A, R, D, T>(attention, ranks, loaded)?;
        // A disk may be slow, and whoever reads what is printed.
        ranks.alone(|| self.report::<D, T>(computed)).map(drop)
    }

    /// Writes and reports.
    fn report<D: Machine, T: Element>(&self, computed: Computed<T>) -> Result<(), Failure> {
        let Computed { rows, errors, last } = computed;
        let bound = tolerance(self.args.backend, T::DTYPE);
        let output = self.output.as_ref().filter(|_| errors.iter().all(|error| *error <= bound));
        if let (Some(output), Some(results)) = (output, &last) {
            output.write(|file| write::results(file, results, &self.settings))?;
        }
        Report {
            device: D::CALLED,
            comm: self.args.comm,
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
                    match self.args.backend {
                        Backend::Sage => String::from(
                            "8 bits (channels of queries or keys that are much larger than \
                                                       others make it worse; `--no-check` writes it all the same)"
                        ),
                        _ => T::DTYPE.to_string(),
                    }
                )));
            }
        }
        Ok(())
    }

    /// Checks that all runs can be computed.
    fn check<A, D, T>(&self, inputs: &Inputs<T>) -> Result<(), Failure>
    where
        A: ParallelAttention<ThreadComm<D>, T>,
        D: Machine,
        T: Element,
    {
        let (mask, takes) = (self.settings.mask, A::Pipeline::MASKS);
        if !takes.takes(mask) {
            return Err(Error::MaskKind { mask, takes }.into());
        }
        self.runs.iter().try_for_each(|run| inputs.check_split(*run, self.settings.keys))
    }

    /// Computes all runs, and what they are compared with. What comes of it is the reporter's.
    fn compute<A, R, D, T>(
        &self,
        attention: &A,
        ranks: &R,
        (inputs, masks): (Inputs<T>, Masks),
    ) -> Result<Computed<T>, Failure>
    where
        A: ParallelAttention<R::Comm, T> + ParallelAttention<ThreadComm<D>, T> + Sync,
        R: Ranks<D>,
        D: Machine,
        T: Element,
    {
        let settings = &self.settings;
        ranks.agree(self.check::<A, D, T>(&inputs))?;
        // Whether the device is there is worth knowing before the host has computed anything.
        let queue = ranks.agree(ranks.queue().map_err(Failure::from))?;
        let (check, elsewhere) = (!self.args.no_check, D::CALLED != DeviceName::Cpu);
        let host = match check && elsewhere {
            true => ranks.alone(|| {
                one_rank::<_, Cpu, f32>(&FlashAttention, Run::ONE_RANK, &inputs.cast()?, &masks, settings)
            })?,
            false => None,
        };
        let masks = ranks.agree(masks.upload::<D>(&queue).map_err(Failure::from))?;
        let alone = |run| ranks.alone(|| one_rank::<A, D, T>(attention, run, &inputs, &masks, settings));
        let compared = self.runs.iter().any(|run| !run.is_one_rank());
        let baseline = if check && compared { alone(Run::ONE_RANK)? } else { None };

        let mut computed =
            Computed { rows: Vec::with_capacity(self.runs.len()), errors: [0.0; 2], last: None };
        for &run in &self.runs {
            let done = match run.is_one_rank() {
                true => alone(run)?,
                false => compute::run::<A, R, D, T>(attention, ranks, run, &inputs, &masks, settings)?,
            };
            let Some((results, timing)) = done else { continue };
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

/// What one rank computes by itself, in this process.
fn one_rank<A, D, T>(
    attention: &A,
    run: Run,
    inputs: &Inputs<T>,
    masks: &Masks<D>,
    settings: &Settings,
) -> Result<(Results<T>, Timing), Failure>
where
    A: ParallelAttention<ThreadComm<D>, T> + Sync,
    D: Machine,
    T: Element,
{
    let threads = Threads { deadline: None };
    compute::run::<A, Threads, D, T>(attention, &threads, run, inputs, masks, settings)?
        .ok_or_else(|| Failure::Internal(String::from("a run of this process has no results")))
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
/// rounds no weights to 16 bits, as a GPU's does. A mistake makes much more than this. In 8 bits each rank rounds its own keys,
/// and is off by some 4 %.
const fn tolerance(backend: Backend, dtype: DType) -> f64 {
    match (backend, dtype) {
        (Backend::Sage, _) => 1e-1,
        (_, DType::F16) => 2e-3,
        (_, DType::BF16) => 8e-3,
        _ => 1e-4,
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use attn::Mask;
    use attn::cuda::Simulated;

    use super::*;
    use crate::cli::Strategy;
    use crate::pipelines::SageAttention;

    #[test]
    fn strategies_on_a_gpu_agree_with_one_rank_and_the_host() {
        let args = RunArgs { device: DeviceName::Cuda, ..RunArgs::default() };
        let masks = [Span::Full, Span::Causal, Span::Window { left: 40, right: 3 }].map(Mask::from);
        let padding = Mask { key_lengths: true, ..Mask::from(Span::Causal) };
        for mask in masks.into_iter().chain([padding]) {
            let mut job = Job::new(&args, None, true).unwrap();
            job.settings.mask = mask;
            let inputs = Inputs::<bf16>::random([1, 256, 4, 64]).unwrap();
            let masks = Masks { key_lengths: mask.key_lengths.then(|| vec![200]), ..Masks::NONE };
            let threads = Threads { deadline: None };
            let computed =
                job.compute::<_, _, Simulated, bf16>(&FlashAttention, &threads, (inputs, masks)).unwrap();
            assert_eq!(computed.rows.len(), 8);
            let [from_one, from_host] = computed.errors;
            assert!(from_one < 4e-3 && 0.0 < from_host && from_host < 4e-3, "{mask}: {from_one} {from_host}");
        }
    }

    /// Off by more than 16 bits explain, and by less than is refused.
    #[test]
    fn strategies_in_8_bits_agree_with_one_rank_and_the_host() {
        // Rounded before the exchange, ranks make what one makes.
        let rounding = tolerance(Backend::Flash, DType::F16);
        for (strategy, least) in [(vec![], rounding), (vec![Strategy::UlyssesQuantised], 0.0)] {
            let args =
                RunArgs { device: DeviceName::Cuda, backend: Backend::Sage, strategy, ..RunArgs::default() };
            let job = Job::new(&args, None, true).unwrap();
            let inputs = Inputs::<f16>::random([1, 256, 4, 128]).unwrap();
            let threads = Threads { deadline: None };
            let computed =
                job.compute::<_, _, Simulated, f16>(&SageAttention, &threads, (inputs, Masks::NONE)).unwrap();
            let most = tolerance(Backend::Sage, DType::F16);
            for error in computed.errors {
                assert!(least <= error && error < 0.7 * most, "{:?}", computed.errors);
            }
        }
    }

    /// A head_dim that the kernel does not take is refused in its words.
    #[test]
    fn what_the_kernel_in_8_bits_does_not_take_is_refused() {
        let args = RunArgs { device: DeviceName::Cuda, backend: Backend::Sage, ..RunArgs::default() };
        let job = Job::new(&args, None, true).unwrap();
        let inputs = Inputs::<f16>::random([1, 64, 4, 96]).unwrap();
        let threads = Threads { deadline: None };
        let refused = job
            .compute::<_, _, Simulated, f16>(&SageAttention, &threads, (inputs, Masks::NONE))
            .err()
            .unwrap();
        let said = refused.to_string();
        assert!(["`sage`", "96", "64 and 128"].iter().all(|part| said.contains(part)), "{said}");
    }
}
