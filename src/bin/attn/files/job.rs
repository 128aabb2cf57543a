//! What the command line asks for.

use std::path::Path;

use attn::{JointStrategy, KeyPlacement, TensorLayout};

use super::compute::Settings;
use super::source;
use crate::cli::{self, RunArgs, Strategy};
use crate::failure::Failure;
use crate::output::Output;
use crate::plan::{self, Run};

/// Runs, and what is the same for all of them.
pub(super) struct Job<'a> {
    pub(super) args: &'a RunArgs,
    pub(super) runs: Vec<Run>,
    pub(super) settings: Settings,
    pub(super) output: Option<Output>,
}

impl<'a> Job<'a> {
    /// What is to be done: on a world of so many ranks, if there is one, and by the process that writes, or another.
    ///
    /// # Errors
    /// If it makes no sense, or the file is not there.
    pub(super) fn new(args: &'a RunArgs, world: Option<usize>, writes: bool) -> Result<Self, Failure> {
        match &args.input {
            Some(input) => Self::stored(args, input, world, writes),
            None => Self::made_up(args, world),
        }
    }

    /// What is to be done with the tensors of a file.
    fn stored(args: &'a RunArgs, input: &Path, world: Option<usize>, writes: bool) -> Result<Self, Failure> {
        let strategies: &[Strategy] =
            if args.strategy.is_empty() { &[Strategy::None] } else { &args.strategy };
        let runs = match world {
            None => plan::runs(strategies, &args.ranks, &args.sharing, |_| &[1])?,
            Some(world) => plan::runs_on(world, strategies, &args.ranks, &args.sharing)?,
        };
        if world.is_none() {
            plan::check_threads(&runs, args.threads)?;
        }
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
        let mask = args.mask.unwrap_or_default();
        let joint = args.joint.map(JointStrategy::from);
        if joint.is_some() && !mask.takes_joint() {
            return Err(attn::Error::JointMask { mask }.into());
        }
        // Whether the input is there is worth knowing first: its absence is the more frequent mistake.
        source::check(input)?;
        let output = args.output.as_deref().filter(|_| writes).map(Output::prepare).transpose()?;
        let settings = Settings {
            layout,
            mask,
            keys: args.keys.map(KeyPlacement::from).unwrap_or_default(),
            joint,
            scale: args.scale,
            lse: args.lse,
            threads: args.threads,
        };
        Ok(Self { args, runs, settings, output })
    }

    /// What is to be done with made-up tensors: everything, unless something is asked for.
    fn made_up(args: &'a RunArgs, world: Option<usize>) -> Result<Self, Failure> {
        let given = [
            ("--output", args.output.is_some()),
            ("--scatter", args.scatter.is_some()),
            ("--gather", args.gather.is_some()),
            ("--joint", args.joint.is_some()),
            ("--lse", args.lse),
        ];
        if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
            return Err(Failure::Usage(format!(
                "`{flag}` is for tensors from a file: give one with `--input`, or leave it out (without one, `--device \
                 {}` computes on made-up tensors)",
                args.device.name()
            )));
        }
        let strategies = if args.strategy.is_empty() { &Strategy::ALL[..] } else { &args.strategy };
        let runs = match world {
            None => plan::runs(strategies, &args.ranks, &args.sharing, plan::demonstrated)?,
            Some(world) => plan::runs_on(world, strategies, &args.ranks, &args.sharing)?,
        };
        let settings = Settings {
            layout: TensorLayout::Bshd,
            mask: cli::span(args.mask.unwrap_or_default())?.into(),
            keys: args.keys.map(KeyPlacement::from).unwrap_or_default(),
            joint: None,
            scale: args.scale,
            lse: false,
            threads: args.threads,
        };
        Ok(Self { args, runs, settings, output: None })
    }
}
