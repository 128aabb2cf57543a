//! How many ranks do what.

use crate::cli::{Degree, MAX_RANKS, SharingArgs, Strategy};
use crate::failure::Failure;

/// Checks that there is a strategy for each degree, and for the layout. A degree of 1 is no contradiction to any.
///
/// # Errors
/// If there is none.
pub(super) fn check_flags(strategies: &[Strategy], sharing: &SharingArgs) -> Result<(), Failure> {
    let superfluous = |flag: &str, has: &dyn Fn(Strategy) -> bool| {
        if strategies.iter().any(|strategy| has(*strategy)) {
            return Ok(());
        }
        let these: Vec<Strategy> = Strategy::ALL.into_iter().filter(|strategy| has(*strategy)).collect();
        Err(Failure::Usage(format!(
            "`{flag}` is for {}, and this runs {}: leave it out, or name one of those with `--strategy`",
            names(&these),
            names(strategies)
        )))
    };
    for degree in Degree::ALL {
        if let Some(count) = sharing.degree(degree).filter(|count| *count > 1) {
            superfluous(&format!("{} {count}", degree.flag()), &|strategy| {
                strategy.degrees().contains(&degree)
            })?;
        }
    }
    let layout = sharing.layout();
    if layout == Default::default() {
        return Ok(());
    }
    superfluous(&format!("--layout {}", layout.name()), &Strategy::has_layout)
}

/// The degrees of a strategy on each number of ranks: of the ranks that share heads, and of the groups of these. Without
/// numbers of ranks, on those that the degrees make, or else on those of `otherwise`.
///
/// With numbers of ranks, a degree that another of the `strategies` needs to tell its two apart is that one's alone:
/// beside `hybrid`, `ulysses` runs on all ranks.
///
/// # Errors
/// If the degrees that are given do not make the ranks.
pub(super) fn all(
    strategy: Strategy,
    strategies: &[Strategy],
    ranks: &[usize],
    sharing: &SharingArgs,
    otherwise: &[usize],
) -> Result<Vec<[usize; 2]>, Failure> {
    let flags = strategy.degrees();
    let is_others = |degree: &Degree| {
        let others = strategies.iter().filter(|other| other.degrees().len() > 1);
        flags.len() == 1
            && !ranks.is_empty()
            && others.into_iter().any(|other| other.degrees().contains(degree))
    };
    let flags_of_its_own = flags.iter().filter(|degree| !is_others(degree));
    let given: Vec<(Degree, usize)> =
        flags_of_its_own.filter_map(|degree| Some((*degree, sharing.degree(*degree)?))).collect();
    let product = given.iter().map(|(_, count)| count).product::<usize>();
    let complete = given.len() == flags.len();
    let made;
    let wanted: &[usize] = match (strategy, ranks) {
        (Strategy::None, _) => &[1],
        (_, []) if complete => {
            made = [product];
            &made[..]
        }
        (_, []) => otherwise,
        (_, ranks) => ranks,
    };
    wanted
        .iter()
        .map(|&wanted| {
            let fits = if complete { product == wanted } else { wanted.is_multiple_of(product) };
            if product > MAX_RANKS || !fits {
                return Err(misfit(strategy, &given, ranks.is_empty(), wanted));
            }
            let count = |degree: Degree| sharing.degree(degree);
            Ok(match *flags {
                [] => [1, 1],
                [Degree::Ulysses] => [wanted, 1],
                [_] => [1, wanted],
                [inner, outer, ..] => {
                    let inner = count(inner)
                        .or_else(|| count(outer).map(|outer| wanted / outer))
                        .unwrap_or_else(|| balanced(wanted));
                    [inner, wanted / inner]
                }
            })
        })
        .collect()
}

/// The largest divisor that is not larger than its counterpart.
fn balanced(ranks: usize) -> usize {
    (1..=ranks).take_while(|d| d * d <= ranks).filter(|d| ranks.is_multiple_of(*d)).last().unwrap_or(1)
}

/// Why degrees do not make a number of ranks, and what to do.
fn misfit(strategy: Strategy, given: &[(Degree, usize)], ranks_open: bool, ranks: usize) -> Failure {
    let product: usize = given.iter().map(|(_, count)| count).product();
    let said: Vec<String> =
        given.iter().map(|(degree, count)| format!("`{} {count}`", degree.flag())).collect();
    let (said, name) = (said.join(" times "), strategy.name());
    let other = strategy.degrees().iter().find(|degree| given.iter().all(|(given, _)| given != *degree));
    Failure::Usage(match other {
        _ if product > MAX_RANKS => {
            format!("strategy `{name}`: {said} is {product} ranks: at most {MAX_RANKS} are allowed")
        }
        None => format!(
            "strategy `{name}`: {said} is {product} ranks, but `--ranks` says {ranks}: leave out one of them"
        ),
        Some(other) if ranks_open => format!(
            "strategy `{name}`: {said} does not say how many ranks there are: give `{}` too, or with `--ranks` a \
             multiple of {product}",
            other.flag()
        ),
        Some(_) => {
            let divisors: Vec<String> = (1..=ranks)
                .filter(|degree| ranks.is_multiple_of(*degree))
                .map(|degree| degree.to_string())
                .collect();
            format!(
                "strategy `{name}`: {ranks} ranks are no multiple of {said}: degrees that would do are {}",
                divisors.join(", ")
            )
        }
    })
}

/// `ring and hybrid`.
fn names(strategies: &[Strategy]) -> String {
    let names: Vec<&str> = strategies.iter().map(|strategy| strategy.name()).collect();
    match names.split_last() {
        Some((last, rest @ [_, ..])) => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        sharing: SharingArgs,
    }

    fn sharing(flags: &str) -> SharingArgs {
        Flags::try_parse_from(std::iter::once("attn").chain(flags.split_whitespace())).unwrap().sharing
    }

    #[track_caller]
    fn check(strategy: Strategy, ranks: &[usize], flags: &str, expected: &[[usize; 2]]) {
        assert_eq!(all(strategy, &[strategy], ranks, &sharing(flags), &[4]).unwrap(), expected);
    }

    #[track_caller]
    fn refuse(strategy: Strategy, ranks: &[usize], flags: &str, says: &str) {
        let flags = sharing(flags);
        let checked =
            check_flags(&[strategy], &flags).and_then(|()| all(strategy, &[strategy], ranks, &flags, &[4]));
        let error = checked.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn a_degree_beside_a_strategy_of_two_is_that_ones() {
        let both = [Strategy::Hybrid, Strategy::Ulysses];
        let found = |strategy| all(strategy, &both, &[8], &sharing("--ulysses 2 --ring 4"), &[4]).unwrap();
        assert_eq!([found(Strategy::Hybrid), found(Strategy::Ulysses)], [[[2, 4]], [[8, 1]]]);
        // Without a number of ranks, each takes what it is given.
        let found = |strategy| all(strategy, &both, &[], &sharing("--ulysses 2 --ring 4"), &[4]).unwrap();
        assert_eq!([found(Strategy::Hybrid), found(Strategy::Ulysses)], [[[2, 4]], [[2, 1]]]);
    }

    #[test]
    fn degrees_follow_from_ranks_and_ranks_from_degrees() {
        check(Strategy::Hybrid, &[8], "--ulysses 2", &[[2, 4]]);
        check(Strategy::Hybrid, &[8, 4], "--ring 2", &[[4, 2], [2, 2]]);
        check(Strategy::Hybrid, &[], "--ulysses 2 --ring 4", &[[2, 4]]);
        check(Strategy::Hybrid, &[], "--ulysses 2", &[[2, 2]]);
        check(Strategy::UlyssesAllgather, &[6], "--allgather 3", &[[2, 3]]);
        check(Strategy::Ulysses, &[], "--ulysses 6 --ring 2", &[[6, 1]]);
        check(Strategy::Ring, &[3], "--ulysses 6 --ring 3", &[[1, 3]]);
        check(Strategy::AllgatherKv, &[], "--ring 2", &[[1, 4]]);
        check(Strategy::None, &[4], "--ring 2", &[[1, 1]]);
    }

    #[test]
    fn without_degrees_they_are_as_equal_as_can_be() {
        for (ranks, degrees) in
            [(1, [1, 1]), (2, [1, 2]), (4, [2, 2]), (6, [2, 3]), (7, [1, 7]), (8, [2, 4]), (36, [6, 6])]
        {
            check(Strategy::Hybrid, &[ranks], "", &[degrees]);
        }
    }

    #[test]
    fn what_does_not_make_the_ranks_is_refused_with_what_would() {
        refuse(Strategy::Ulysses, &[4], "--ulysses 2", "`--ulysses 2` is 2 ranks, but `--ranks` says 4");
        refuse(Strategy::Hybrid, &[4], "--ulysses 2 --ring 4", "`--ring 4` is 8 ranks, but `--ranks` says 4");
        refuse(Strategy::Hybrid, &[8], "--ulysses 3", "8 ranks are no multiple of `--ulysses 3`: degrees");
        refuse(Strategy::Hybrid, &[8], "--ring 3", "would do are 1, 2, 4, 8");
        refuse(Strategy::Hybrid, &[], "--ulysses 3", "give `--ring` too, or with `--ranks` a multiple of 3");
        refuse(Strategy::Hybrid, &[], "--ulysses 1024 --ring 2", "2048 ranks: at most 1024");
    }

    #[test]
    fn what_no_strategy_has_is_refused_with_those_that_have_it() {
        refuse(
            Strategy::Ring,
            &[4],
            "--ulysses 4",
            "for ulysses, hybrid and ulysses_allgather, and this runs ring",
        );
        refuse(
            Strategy::None,
            &[],
            "--allgather 2",
            "`--allgather 2` is for allgather_kv and ulysses_allgather",
        );
        refuse(Strategy::Ulysses, &[], "--layout striped", "`--layout striped` is for ring and hybrid");
        check(Strategy::Ring, &[4], "--ulysses 1 --layout zigzag", &[[1, 4]]);
        assert!(check_flags(&[Strategy::None], &sharing("--ulysses 1 --layout contiguous")).is_ok());
    }
}
