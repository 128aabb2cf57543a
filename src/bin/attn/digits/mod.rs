//! The demonstration: the bundled model draws the ten digits with every strategy, and all drawings must agree.

mod dit;
mod layers;
mod picture;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::{Duration, Instant};

use attn::prelude::*;
use attn::{DType, Flash, KeyPlacement, Mask, Positions, Sdpa, Sharding, ThreadComm};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use safetensors::{Dtype, SafeTensors};

use self::dit::{CHANNELS, Dit, HEADS, JointAttention, Place, STEPS, TEXT, TOKENS};
use crate::cli::{Backend, DeviceName, RunArgs, Strategy, TypeName};
use crate::failure::Failure;
use crate::machine;
use crate::output::Output;
use crate::plan::{self, Run};
use crate::report::{Comparison, Measured, Report, Row, Timing, bytes};

static MODEL: &[u8] = include_bytes!("../../../../data/dit-digits/model.safetensors");
static DIGITS: &[u8] = include_bytes!("../../../../data/dit-digits/ten_digits.safetensors");

/// How far a sample may be from one rank's and from PyTorch's. Rounding alone makes about 1e-6.
const TOLERANCE: f64 = 5e-5;

/// How long a collective waits for the slowest rank: long, for ranks may share few cores.
const DEADLINE: Duration = Duration::from_secs(3600);

const COMPARISONS: [Comparison; 2] = [
    Comparison { title: "diff one rank", key: "max_diff_one_rank" },
    Comparison { title: "diff PyTorch", key: "max_diff_reference" },
];

/// Runs the demonstration.
///
/// # Errors
/// If an argument makes no sense here, the picture cannot be written, or a drawing is off by more than rounding.
pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    machine::check(args.device, args.backend, &args.strategy, args.threads)?;
    only_with_input(args)?;
    let runs = runs(args)?;
    let output = Output::prepare(args.output.as_deref().unwrap_or(Path::new("digits.png")))?;
    let task = Task::parse(DIGITS)?;
    let samples = match args.backend {
        Backend::Flash => sample_all::<Flash>(&runs, &task, args),
        Backend::Sdpa => sample_all::<Sdpa>(&runs, &task, args),
        Backend::Sage => Err(machine::no_sage_on_the_host()),
    }?;
    let drawings: Vec<&[f32]> = samples.iter().map(|(sample, _)| sample.as_slice()).collect();
    output.write(|file| picture::write(file, &drawings, task.text.len() / TEXT))?;

    let one_rank = drawings.first().copied().unwrap_or_default();
    let row = |(run, (sample, timing)): (&Run, &(Vec<f32>, Timing))| {
        let errors = [one_rank, &task.sample].map(|other| Some(max_difference(sample, other)));
        Row { run: *run, timing: *timing, errors: errors.to_vec() }
    };
    let rows: Vec<Row> = runs.iter().zip(&samples).map(row).collect();
    let worst = rows.iter().flat_map(|row| &row.errors).flatten().copied().fold(0.0, f64::max);
    Report {
        device: DeviceName::Cpu,
        comm: args.comm,
        backend: args.backend,
        dtype: DType::F32,
        mask: Mask::NONE,
        keys: KeyPlacement::Sharded,
        comparisons: &COMPARISONS,
        rows,
        written: Some(("picture", output.name())),
    }
    .print(args.json)?;
    if worst > TOLERANCE {
        return Err(Failure::Tolerance(format!(
            "the largest difference is {worst:.1e}, more than the {TOLERANCE:.0e} that rounding may explain"
        )));
    }
    Ok(())
}

/// Whether the bundled files are whole; what is in them.
///
/// # Errors
/// If they are not.
pub(crate) fn check() -> Result<String, Failure> {
    let model = Dit::<Flash>::load(MODEL)?;
    let digits = Task::parse(DIGITS)?.text.len() / TEXT;
    Ok(format!(
        "{} blocks, {digits} digits, {}",
        model.blocks.len(),
        bytes((MODEL.len() + DIGITS.len()) as u64)
    ))
}

/// The one-rank run that all are compared with, and then those that were asked for.
fn runs(args: &RunArgs) -> Result<Vec<Run>, Failure> {
    let strategies = if args.strategy.is_empty() { &Strategy::ALL[..] } else { &args.strategy };
    let asked = plan::runs(strategies, &args.ranks, &args.sharing, plan::demonstrated)?;
    plan::check_threads(&asked, args.threads)?;
    for run in &asked {
        plan::check_heads(*run, [HEADS, HEADS])?;
        plan::check_sequence(*run, "the image", TOKENS)?;
    }
    let split = args.sharing.split();
    let one_rank = Run { sharding: Sharding { split, ..Sharding::ONE }, ..Run::ONE_RANK };
    Ok(std::iter::once(one_rank).chain(asked.into_iter().filter(|run| *run != one_rank)).collect())
}

/// Refuses arguments that mean something only for tensors from a file.
fn only_with_input(args: &RunArgs) -> Result<(), Failure> {
    let given = [
        ("--dtype", args.dtype.is_some_and(|dtype| dtype != TypeName::F32)),
        ("--mask", args.mask.is_some_and(|mask| mask != Mask::NONE)),
        ("--keys", args.keys.is_some()),
        ("--scatter", args.scatter.is_some()),
        ("--gather", args.gather.is_some()),
        ("--scale", args.scale.is_some()),
        ("--joint", args.joint.is_some()),
        ("--lse", args.lse),
        ("--no-check", args.no_check),
    ];
    if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        return Err(Failure::Usage(format!(
            "`{flag}` is for tensors from a file: give one with `--input`, or leave it out (the bundled model computes \
             in f32, with a mask, scale and layout of its own)"
        )));
    }
    let extension =
        |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    match &args.output {
        Some(path) if !extension(path) => Err(Failure::Usage(format!(
            "without `--input` the output is a picture: `{}` should end in .png",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// What is to be drawn, and how PyTorch drew it.
struct Task {
    /// `[digits, TOKENS, CHANNELS]`.
    noise: Vec<f32>,
    /// `[digits, TEXT]`.
    text: Vec<usize>,
    /// `[digits, TOKENS, CHANNELS]`.
    sample: Vec<f32>,
}

impl Task {
    fn parse(file: &[u8]) -> Result<Self, Failure> {
        let damaged = |error: &dyn std::fmt::Display| Failure::Input(format!("the bundled digits: {error}"));
        let file = SafeTensors::deserialize(file).map_err(|error| damaged(&error))?;
        let words = |name: &str, dtype: Dtype| {
            let tensor = file.tensor(name).map_err(|error| damaged(&error))?;
            if tensor.dtype() != dtype {
                return Err(damaged(&format!("`{name}` is {:?}, expected {dtype:?}", tensor.dtype())));
            }
            Ok(tensor.data().as_chunks::<4>().0.to_vec())
        };
        let floats =
            |name| words(name, Dtype::F32).map(|words| words.into_iter().map(f32::from_le_bytes).collect());
        let id = |word| usize::try_from(i32::from_le_bytes(word)).unwrap_or(usize::MAX);
        let task = Self {
            noise: floats("noise")?,
            text: words("text", Dtype::I32)?.into_iter().map(id).collect(),
            sample: floats("sample")?,
        };
        let digits = task.text.len() / TEXT;
        if [task.noise.len(), task.sample.len()] != [digits * TOKENS * CHANNELS; 2] {
            return Err(damaged(&"noise, text and sample are not of one number of digits"));
        }
        Ok(task)
    }

    /// The noise of some of the image's tokens, `[digits, tokens, CHANNELS]`, and which those are.
    fn shard(&self, tokens: Positions) -> (Vec<f32>, Place) {
        let mine = |sample: &[f32]| -> Vec<f32> {
            tokens.iter().flat_map(|token| &sample[token * CHANNELS..][..CHANNELS]).copied().collect()
        };
        let noise: Vec<f32> = self.noise.chunks_exact(TOKENS * CHANNELS).flat_map(mine).collect();
        (noise, Place::new(self.text.len() / TEXT, tokens))
    }
}

/// Draws with every run in turn.
fn sample_all<K: Default>(
    runs: &[Run],
    task: &Task,
    args: &RunArgs,
) -> Result<Vec<(Vec<f32>, Timing)>, Failure>
where
    JointAttention<K>: ParallelAttention<ThreadComm<Cpu>, f32>,
{
    let model = Dit::<K>::load(MODEL)?;
    let target = if args.json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some((runs.len() * STEPS) as u64), target);
    if let Ok(style) = ProgressStyle::with_template("{msg:>29} [{bar:40}] {pos}/{len} steps, {eta} left") {
        bar.set_style(style.progress_chars("=> "));
    }
    let samples = runs.iter().map(|run| {
        bar.set_message(run.to_string());
        sample(&model, *run, args.threads, args.deadline, task, || bar.inc(1))
    });
    let samples = samples.collect();
    bar.finish_and_clear();
    samples
}

/// Draws with one run: every rank its own tokens, put together at the end.
fn sample<K: Default>(
    model: &Dit<K>,
    run: Run,
    threads: Option<usize>,
    deadline: Option<Duration>,
    task: &Task,
    on_step: impl Fn() + Sync,
) -> Result<(Vec<f32>, Timing), Failure>
where
    JointAttention<K>: ParallelAttention<ThreadComm<Cpu>, f32>,
{
    let mut world = World::threads(run.ranks()).deadline(deadline.unwrap_or(DEADLINE));
    if let Some(threads) = threads {
        world = world.threads_per_rank(threads);
    }
    let config = run.config();
    let start = Instant::now();
    let shards = world.run(|comm| {
        let rank = comm.rank();
        let mut session = Session::open_with(comm, &config)?;
        session.measure_phases(true);
        // The session knows which tokens of the image each rank has.
        let tokens = session.sharding().sequence(TOKENS).map_err(attn::Error::from)?.positions(rank);
        let (noise, at) = task.shard(tokens);
        let on_step = || {
            if rank == 0 {
                on_step();
            }
        };
        let shard = model.sample(&mut session, &noise, &task.text, &at, on_step)?;
        Ok::<_, Failure>((tokens, shard, Measured::of(&session)))
    })?;
    let wall = start.elapsed();
    let measured: Vec<Measured> = shards.iter().map(|(.., measured)| *measured).collect();
    let timing = Timing::of(&measured, wall);
    Ok((gather(shards.iter().map(|(tokens, shard, _)| (*tokens, shard.as_slice()))), timing))
}

/// Puts the ranks' tokens of each digit where they belong.
fn gather<'a>(shards: impl Iterator<Item = (Positions, &'a [f32])> + Clone) -> Vec<f32> {
    let width = TOKENS * CHANNELS;
    let mut whole = vec![0.0; shards.clone().map(|(_, shard)| shard.len()).sum()];
    for (digit, sample) in whole.chunks_exact_mut(width).enumerate() {
        for (tokens, shard) in shards.clone() {
            let mine = shard[digit * tokens.len() * CHANNELS..].chunks_exact(CHANNELS);
            for (token, values) in tokens.iter().zip(mine) {
                sample[token * CHANNELS..][..CHANNELS].copy_from_slice(values);
            }
        }
    }
    whole
}

/// The largest difference of two samples; infinite where one is not a number.
fn max_difference(a: &[f32], b: &[f32]) -> f64 {
    let difference = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).abs();
    a.iter().zip(b).map(difference).fold(0.0, |most, d| if d.is_nan() { f64::INFINITY } else { most.max(d) })
}
