//! Attention on tensors from a safetensors file.

mod compare;
mod compute;
mod input;
mod write;

use std::path::Path;

use attn::prelude::*;
use attn::{DType, TensorLayout, ThreadComm};
use half::{bf16, f16};

use self::compute::Settings;
use self::input::{Inputs, Source};
use crate::cli::{Backend, RunArgs, Strategy};
use crate::failure::Failure;
use crate::output::Output;
use crate::pipelines::{FlashAttention, SdpaAttention};
use crate::plan::{self, Run};
use crate::report::{Comparison, Report, Row};

const COMPARISONS: [Comparison; 2] = [
    Comparison { title: "rel. error", key: "relative_error_one_rank" },
    Comparison { title: "diff one rank", key: "max_diff_one_rank" },
];

/// Runs attention on a file.
///
/// # Errors
/// If the file cannot be read or its tensors do not fit, the output cannot be written, or strategies disagree.
pub(crate) fn run(args: &RunArgs, input: &Path) -> Result<(), Failure> {
    let job = Job::new(args, input)?;
    let bytes = input::read(input)?;
    let source = Source::parse(input, &bytes)?;
    match args.dtype.map_or_else(|| source.dtype(), |name| Ok(name.into()))? {
        DType::F32 => job.of_type::<f32>(&source),
        DType::F16 => job.of_type::<f16>(&source),
        DType::BF16 => job.of_type::<bf16>(&source),
        other => Err(Failure::Internal(format!("elements of type {other} are not provided for"))),
    }
}

/// What the command line asks for.
struct Job<'a> {
    args: &'a RunArgs,
    runs: Vec<Run>,
    settings: Settings,
    output: Option<Output>,
}

impl<'a> Job<'a> {
    fn new(args: &'a RunArgs, input: &Path) -> Result<Self, Failure> {
        let strategies: &[Strategy] =
            if args.strategy.is_empty() { &[Strategy::None] } else { &args.strategy };
        let ranks: &[usize] = if args.ranks.is_empty() { &[1] } else { &args.ranks };
        let runs = plan::runs(strategies, ranks)?;
        plan::check_threads(&runs, args.threads)?;
        if args.output.is_some() && runs.len() != 1 {
            return Err(Failure::Usage(format!(
                "`--output` takes the result of one run, and this asks for {}: give one strategy and one number of \
                 ranks, or leave it out to compare them",
                runs.len()
            )));
        }
        if args.lse && args.output.is_none() {
            return Err(Failure::Usage(String::from(
                "`--lse` is written to the file that `--output` names: name one",
            )));
        }
        let (scatter, gather) = (args.scatter.unwrap_or(2), args.gather.unwrap_or(1));
        let layout = TensorLayout::from_axes(scatter, gather).ok_or_else(|| {
            let known: Vec<String> = TensorLayout::ALL
                .iter()
                .map(|layout| (layout.axes(), layout))
                .map(|((scatter, gather), layout)| format!("{scatter} and {gather} ({layout})"))
                .collect();
            Failure::Usage(format!(
                "`--scatter {scatter} --gather {gather}` names no layout: expected {}",
                known.join(", ")
            ))
        })?;
        let mask = args.mask.map_or(Mask::None, Mask::from);
        let joint = args.joint.map(JointStrategy::from);
        if joint.is_some() && mask != Mask::None {
            return Err(attn::Error::JointMask { mask: mask.name() }.into());
        }
        // Whether the input is there is worth knowing first: its absence is the more frequent mistake.
        input::check(input)?;
        let output = args.output.as_deref().map(Output::prepare).transpose()?;
        let settings =
            Settings { layout, mask, joint, scale: args.scale, lse: args.lse, threads: args.threads };
        Ok(Self { args, runs, settings, output })
    }

    /// Goes on with elements of one type.
    fn of_type<T: Element>(&self, source: &Source<'_>) -> Result<(), Failure>
    where
        FlashAttention: ParallelAttention<ThreadComm<Cpu>, T>,
        SdpaAttention: ParallelAttention<ThreadComm<Cpu>, T>,
    {
        let inputs = source.load::<T>(&self.settings)?;
        for run in &self.runs {
            inputs.check_split(*run)?;
        }
        match self.args.backend {
            Backend::Flash => self.all_runs(&FlashAttention, &inputs),
            Backend::Sdpa => self.all_runs(&SdpaAttention, &inputs),
        }
    }

    /// Computes all runs, writes and reports.
    fn all_runs<A, T>(&self, attention: &A, inputs: &Inputs<T>) -> Result<(), Failure>
    where
        A: ParallelAttention<ThreadComm<Cpu>, T> + Sync,
        T: Element,
    {
        let compute = |run: Run| compute::run(attention, run, inputs, &self.settings);
        let alone = self.runs.iter().all(|run| *run == Run::ONE_RANK);
        let baseline = (!alone && !self.args.no_check).then(|| compute(Run::ONE_RANK)).transpose()?;
        let mut rows = Vec::with_capacity(self.runs.len());
        let (mut worst, mut last) = (0.0_f64, None);
        for &run in &self.runs {
            let (results, timing) = compute(run)?;
            let difference = baseline.as_ref().map(|(alone, _)| results.difference(alone));
            worst = difference.map_or(worst, |difference| worst.max(difference.relative));
            let errors = vec![difference.map(|d| d.relative), difference.map(|d| d.largest)];
            rows.push(Row { run, timing, errors });
            last = Some(results);
        }
        let output = self.output.as_ref().filter(|_| worst <= tolerance(T::DTYPE));
        if let (Some(output), Some(results)) = (output, &last) {
            output.write(|file| write::results(file, results, &self.settings))?;
        }
        Report {
            backend: self.args.backend,
            dtype: T::DTYPE,
            comparisons: &COMPARISONS,
            rows,
            written: output.map(|output| ("output", output.name())),
        }
        .print(self.args.json)?;
        if worst > tolerance(T::DTYPE) {
            return Err(Failure::Tolerance(format!(
                "the relative error against one rank is {worst:.1e}, more than the {:.0e} that rounding may explain \
                 in {}; nothing was written",
                tolerance(T::DTYPE),
                T::DTYPE
            )));
        }
        Ok(())
    }
}

/// How large the relative error against one rank may be. Strategies differ in the order of their sums, which makes about
/// 1e-6 in f32, more where values nearly cancel, and at most a last place in 16 bits; a mistake makes much more than this.
const fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1e-2,
        DType::BF16 => 3e-2,
        _ => 1e-3,
    }
}
