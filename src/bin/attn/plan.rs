//! Which runs a command line asks for, and whether their tensors divide among the ranks.

use attn::{Error, SequenceLayout};

use crate::cli::{MAX_RANKS, Strategy};
use crate::failure::Failure;

/// One strategy on a number of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) strategy: Strategy,
    pub(crate) ranks: usize,
}

impl Run {
    /// What all others are compared with.
    pub(crate) const ONE_RANK: Self = Self { strategy: Strategy::None, ranks: 1 };
}

/// Every strategy on every number of ranks, each once; `none` on one rank only.
///
/// # Errors
/// If `none` is asked for on several ranks and no other strategy with it.
pub(crate) fn runs(strategies: &[Strategy], ranks: &[usize]) -> Result<Vec<Run>, Failure> {
    if strategies.iter().all(|strategy| *strategy == Strategy::None)
        && let Some(&ranks) = ranks.iter().find(|ranks| **ranks > 1)
    {
        return Err(Error::NotParallel { ranks }.into());
    }
    let mut runs = Vec::new();
    for &strategy in strategies {
        for &ranks in if strategy == Strategy::None { &[1] } else { ranks } {
            let run = Run { strategy, ranks };
            if !runs.contains(&run) {
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

/// Checks that threads for every rank are a number that a machine can have.
///
/// # Errors
/// If they are not.
pub(crate) fn check_threads(runs: &[Run], threads: Option<usize>) -> Result<(), Failure> {
    let threads = threads.unwrap_or(1);
    match runs.iter().find(|run| run.ranks * threads > MAX_RANKS) {
        None => Ok(()),
        Some(run) => Err(Failure::Usage(format!(
            "{} ranks of {threads} threads are {} threads: at most {MAX_RANKS} are allowed",
            run.ranks,
            run.ranks * threads
        ))),
    }
}

/// Checks that a run can share a tensor's positions and heads among its ranks.
///
/// # Errors
/// If it cannot; the message lists the numbers of ranks that could.
pub(crate) fn check_split(
    run: Run,
    tensor: &str,
    seq: usize,
    [heads, kv_heads]: [usize; 2],
) -> Result<(), Failure> {
    let Run { strategy, ranks } = run;
    if strategy == Strategy::Ulysses {
        SequenceLayout::strict(ranks, seq / ranks, heads, kv_heads)
            .map_err(|error| Failure::Input(format!("strategy `ulysses` on {ranks} ranks: {error}")))?;
    }
    if !seq.is_multiple_of(ranks) {
        let divisors: Vec<String> = (1..=MAX_RANKS)
            .filter(|ranks| seq.is_multiple_of(*ranks))
            .map(|ranks| ranks.to_string())
            .collect();
        return Err(Failure::Input(format!(
            "the {seq} positions of {tensor} do not divide among {ranks} ranks: numbers of ranks that would do are {}",
            divisors.join(", ")
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_run_once_and_on_one_rank() {
        let runs = runs(&[Strategy::Ring, Strategy::None, Strategy::Ring], &[2, 4]).unwrap();
        let ring = |ranks| Run { strategy: Strategy::Ring, ranks };
        assert_eq!(runs, [ring(2), ring(4), Run::ONE_RANK]);
    }

    #[test]
    fn none_on_several_ranks_is_an_error_only_when_nothing_else_is_meant() {
        assert!(runs(&[Strategy::None], &[1, 2]).is_err());
        assert!(runs(&[Strategy::None], &[1]).is_ok());
    }

    #[test]
    fn what_does_not_divide_is_told_with_what_would() {
        let ulysses = |ranks| Run { strategy: Strategy::Ulysses, ranks };
        let error = check_split(ulysses(3), "`q`", 24, [4, 4]).unwrap_err().to_string();
        assert!(error.ends_with("degrees that do are 1, 2 and 4"), "{error}");
        let error = check_split(ulysses(4), "`q`", 10, [4, 4]).unwrap_err().to_string();
        assert!(error.ends_with("would do are 1, 2, 5, 10"), "{error}");
    }
}
