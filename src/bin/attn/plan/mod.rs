//! Which runs a command line asks for, and whether their tensors divide among the ranks.

mod degrees;
mod split;

use std::fmt;

use attn::{ParallelConfig, RingLayout, Sharding};

pub(crate) use self::split::{check_heads, check_sequence};
use crate::cli::{Degree, MAX_RANKS, SharingArgs, Strategy};
use crate::failure::Failure;

/// One strategy on a number of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) strategy: Strategy,
    /// How the ranks share positions and heads.
    pub(crate) sharding: Sharding,
}

impl Run {
    /// What all others are compared with.
    pub(crate) const ONE_RANK: Self = Self { strategy: Strategy::None, sharding: Sharding::ONE };

    pub(crate) const fn ranks(&self) -> usize {
        self.sharding.ranks()
    }

    /// Whether this is the run that others are compared with.
    pub(crate) fn is_one_rank(&self) -> bool {
        self.strategy == Strategy::None
    }

    /// One of its degrees, if it is one that the strategy has.
    pub(crate) fn degree(&self, degree: Degree) -> Option<usize> {
        let Sharding { ulysses, outer, .. } = self.sharding;
        let count = if degree == Degree::Ulysses { ulysses } else { outer };
        self.strategy.degrees().contains(&degree).then_some(count)
    }

    /// In which order its ring shares the sequence, if it has one.
    pub(crate) fn layout(&self) -> Option<RingLayout> {
        self.strategy.has_layout().then_some(self.sharding.layout)
    }

    /// What a session is opened with.
    pub(crate) fn config(&self) -> ParallelConfig {
        ParallelConfig {
            ulysses_degree: self.degree(Degree::Ulysses),
            ring_degree: self.degree(Degree::Ring),
            allgather_degree: self.degree(Degree::Allgather),
            layout: self.layout(),
            split: Some(self.sharding.split),
            ..ParallelConfig::strategy(self.strategy.name())
        }
    }

    /// The number of ranks, and how two degrees make it: `4 (2 x 2)`.
    pub(crate) fn ranks_text(&self) -> String {
        let Sharding { ulysses, outer, .. } = self.sharding;
        match self.strategy.degrees() {
            [_, _] => format!("{} ({ulysses} x {outer})", self.ranks()),
            _ => self.ranks().to_string(),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.strategy.name(), self.ranks_text())
    }
}

/// On how many ranks a strategy shows what it can do.
pub(crate) const fn demonstrated(strategy: Strategy) -> &'static [usize] {
    match strategy {
        Strategy::None => &[1],
        Strategy::Ulysses | Strategy::UlyssesQuantised | Strategy::Ring => &[2, 4],
        Strategy::Hybrid | Strategy::AllgatherKv | Strategy::UlyssesAllgather => &[4],
    }
}

/// Every strategy on every number of ranks, each once; `none` on one rank only. Without numbers of ranks, a strategy
/// has those that its degrees make, or else those that `otherwise` says.
///
/// # Errors
/// If `none` is asked for on several ranks and no other strategy with it; if there are degrees or a layout that no
/// strategy has, or degrees that do not make the ranks.
pub(crate) fn runs(
    strategies: &[Strategy],
    ranks: &[usize],
    sharing: &SharingArgs,
    otherwise: fn(Strategy) -> &'static [usize],
) -> Result<Vec<Run>, Failure> {
    if strategies.iter().all(|strategy| *strategy == Strategy::None)
        && let Some(&ranks) = ranks.iter().find(|ranks| **ranks > 1)
    {
        let others: Vec<&str> = Strategy::ALL
            .iter()
            .filter(|other| **other != Strategy::None)
            .map(|other| other.name())
            .collect();
        return Err(Failure::Usage(format!(
            "strategy `none` runs on one rank, and `--ranks` says {ranks}: name one that shards the sequence with \
             `--strategy` ({})",
            others.join(", ")
        )));
    }
    degrees::check_flags(strategies, sharing)?;
    let mut runs = Vec::new();
    for &strategy in strategies {
        for [ulysses, outer] in degrees::all(strategy, strategies, ranks, sharing, otherwise(strategy))? {
            let layout = if strategy.has_layout() { sharing.layout() } else { RingLayout::Contiguous };
            let run = Run { strategy, sharding: Sharding { ulysses, outer, layout, split: sharing.split() } };
            if !runs.contains(&run) {
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

/// The same on the ranks of a world, which are as many as they are. (`none` runs on one of them.)
///
/// # Errors
/// As [`runs`]; if other numbers of ranks are asked for.
pub(crate) fn runs_on(
    world: usize,
    strategies: &[Strategy],
    ranks: &[usize],
    sharing: &SharingArgs,
) -> Result<Vec<Run>, Failure> {
    if let Some(other) = ranks.iter().find(|ranks| **ranks != world) {
        return Err(Failure::Usage(format!(
            "`--ranks` says {other}, but {world} ranks were started: leave `--ranks` out, or start {other}"
        )));
    }
    runs(strategies, &[world], sharing, |_| &[]).map_err(|failure| match failure {
        // It is not the command line that says how many there are.
        Failure::Usage(said) => {
            Failure::Usage(said.replace(&format!("`--ranks` says {world}"), &format!("{world} were started")))
        }
        other => other,
    })
}

/// Checks that threads for every rank are a number that a machine can have.
///
/// # Errors
/// If they are not.
pub(crate) fn check_threads(runs: &[Run], threads: Option<usize>) -> Result<(), Failure> {
    let threads = threads.unwrap_or(1);
    match runs.iter().map(Run::ranks).find(|ranks| ranks * threads > MAX_RANKS) {
        None => Ok(()),
        Some(ranks) => Err(Failure::Usage(format!(
            "{ranks} ranks of {threads} threads are {} threads: at most {MAX_RANKS} are allowed",
            ranks * threads
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_run_once_and_on_one_rank() {
        let sharing = SharingArgs::default();
        let runs = runs(&[Strategy::Ring, Strategy::None, Strategy::Ring], &[2, 4], &sharing, demonstrated);
        let ring = |outer| Run { strategy: Strategy::Ring, sharding: Sharding { outer, ..Sharding::ONE } };
        assert_eq!(runs.unwrap(), [ring(2), ring(4), Run::ONE_RANK]);
    }

    #[test]
    fn none_on_several_ranks_is_an_error_only_when_nothing_else_is_meant() {
        let runs = |ranks| runs(&[Strategy::None], ranks, &SharingArgs::default(), demonstrated);
        assert!(runs(&[1, 2]).is_err());
        assert!(runs(&[1]).is_ok());
        assert_eq!(runs(&[]).unwrap(), [Run::ONE_RANK]);
    }

    #[test]
    fn the_demonstration_has_a_row_for_each_strategy_and_two_for_some() {
        let runs = runs(&Strategy::ALL, &[], &SharingArgs::default(), demonstrated).unwrap();
        let rows: Vec<String> = runs.iter().map(Run::to_string).collect();
        let expected = [
            "none x 1",
            "ulysses x 2",
            "ulysses x 4",
            "ring x 2",
            "ring x 4",
            "hybrid x 4 (2 x 2)",
            "allgather_kv x 4",
            "ulysses_allgather x 4 (2 x 2)",
        ];
        assert_eq!(rows, expected);
    }
}
