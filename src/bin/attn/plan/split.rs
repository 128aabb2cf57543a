//! Whether a run's ranks can share positions and heads.

use attn::Error;

use super::Run;
use crate::failure::Failure;

/// Checks that a run can share a tensor's positions among its ranks.
///
/// # Errors
/// If it cannot; the message lists what could.
pub(crate) fn check_sequence(run: Run, tensor: &str, seq: usize) -> Result<(), Failure> {
    match run.sharding.sequence(seq) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Input(format!("{tensor}: {}", in_flags(&error)))),
    }
}

/// Checks that a run can share heads among its ranks.
///
/// # Errors
/// If it cannot; the message lists the degrees that could.
pub(crate) fn check_heads(run: Run, [heads, kv_heads]: [usize; 2]) -> Result<(), Failure> {
    let Err(error) = run.sharding.heads(heads, kv_heads) else { return Ok(()) };
    let (name, ranks, error) = (run.strategy.name(), run.ranks(), in_flags(&Error::from(error)));
    Err(Failure::Input(format!("strategy `{name}` on {ranks} ranks: {error}")))
}

/// What the library says, which speaks of the attribute's key, as the command line asks for the other split.
fn in_flags(error: &dyn std::error::Error) -> String {
    error.to_string().replace("`split = \"uneven\"`", "`--split uneven`")
}

#[cfg(test)]
mod tests {
    use attn::{RingLayout, Sharding, Split};

    use super::*;
    use crate::cli::Strategy;

    fn run(strategy: Strategy, ulysses: usize, outer: usize, layout: RingLayout) -> Run {
        Run { strategy, sharding: Sharding { ulysses, outer, layout, split: Split::Strict } }
    }

    #[test]
    fn what_does_not_divide_is_told_with_what_would() {
        let ulysses = run(Strategy::Ulysses, 3, 1, RingLayout::Contiguous);
        let error = check_heads(ulysses, [4, 4]).unwrap_err().to_string();
        assert!(error.ends_with("degrees that do are 1, 2 and 4; or use `--split uneven`"), "{error}");
        let error = check_sequence(ulysses, "`q`", 10).unwrap_err().to_string();
        assert!(error.starts_with("`q`: 10 positions do not divide among 3 ranks"), "{error}");
        assert!(error.ends_with("would do are 1, 2, 5 and 10; or use `--split uneven`"), "{error}");
        let zigzag = run(Strategy::Ring, 1, 4, RingLayout::Zigzag);
        let error = check_sequence(zigzag, "`q`", 12).unwrap_err().to_string();
        assert!(error.ends_with("of 1, 2, 3 and 6; or use `--split uneven`"), "{error}");
    }

    #[test]
    fn an_uneven_split_shares_everything_but_heads_that_form_no_groups() {
        let mut run = run(Strategy::Hybrid, 3, 5, RingLayout::Zigzag);
        run.sharding.split = Split::Uneven;
        assert!(check_sequence(run, "`q`", 2).is_ok() && check_heads(run, [4, 2]).is_ok());
        let error = check_heads(run, [4, 3]).unwrap_err().to_string();
        assert!(error.ends_with("kv_heads may be 1, 2 and 4"), "{error}");
    }
}
