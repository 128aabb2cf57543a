//! How many ranks do what.

use crate::error::{Error, Result};

/// The degree of a strategy that has but one: the size of its group.
pub(super) fn whole(key: &'static str, declared: Option<usize>, ranks: usize) -> Result<usize> {
    match declared {
        Some(declared) if declared != ranks => {
            let found = format!("a group of {ranks} ranks");
            Err(Error::Declared { key, declared: declared.to_string(), found })
        }
        _ => Ok(ranks),
    }
}

/// The degrees of a strategy that has two, of which one may be left out.
pub(super) fn product(
    strategy: &str,
    (inner_key, inner): (&str, Option<usize>),
    (outer_key, outer): (&str, Option<usize>),
    ranks: usize,
) -> Result<(usize, usize)> {
    let other = |key: &str, degree: usize, other: &str| {
        if degree > 0 && ranks.is_multiple_of(degree) {
            return Ok(ranks / degree);
        }
        Err(Error::Configuration(format!(
            "strategy `{strategy}`: {ranks} ranks are no multiple of `{key}` {degree}, so there is no `{other}` degree \
             that would make them"
        )))
    };
    match (inner, outer) {
        (Some(inner), Some(outer)) if inner.checked_mul(outer) == Some(ranks) => Ok((inner, outer)),
        (Some(inner), Some(outer)) => Err(Error::Configuration(format!(
            "strategy `{strategy}`: `{inner_key}` {inner} times `{outer_key}` {outer} is {}, but the group has {ranks} \
             ranks",
            inner.saturating_mul(outer)
        ))),
        (Some(inner), None) => Ok((inner, other(inner_key, inner, outer_key)?)),
        (None, Some(outer)) => Ok((other(outer_key, outer, inner_key)?, outer)),
        (None, None) => Err(Error::Configuration(format!(
            "strategy `{strategy}` on {ranks} ranks needs to know how many of them share the heads: give `{inner_key}` \
             or `{outer_key}`, in the attribute or as a degree of the configuration; pairs that would do are {}",
            pairs(ranks)
        ))),
    }
}

/// Degrees whose product is a number of ranks.
fn pairs(ranks: usize) -> String {
    let pairs: Vec<String> =
        attn_plan::divisors(ranks).into_iter().map(|d| format!("{d} x {}", ranks / d)).collect();
    pairs.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hybrid(ulysses: Option<usize>, ring: Option<usize>, ranks: usize) -> Result<(usize, usize)> {
        product("hybrid", ("ulysses", ulysses), ("ring", ring), ranks)
    }

    #[test]
    fn one_degree_gives_the_other() {
        assert_eq!(hybrid(Some(2), None, 8), Ok((2, 4)));
        assert_eq!(hybrid(None, Some(2), 8), Ok((4, 2)));
        assert_eq!(hybrid(Some(4), Some(2), 8), Ok((4, 2)));
        assert_eq!(hybrid(Some(1), None, 1), Ok((1, 1)));
    }

    #[test]
    fn degrees_that_do_not_make_the_group_are_refused() {
        for (ulysses, ring, ranks, say) in [
            (Some(3), None, 8, "8 ranks are no multiple of `ulysses` 3"),
            (Some(0), None, 8, "no multiple"),
            (Some(2), Some(2), 8, "is 4, but the group has 8 ranks"),
            (Some(usize::MAX), Some(2), 8, "the group has 8 ranks"),
            (None, None, 6, "1 x 6, 2 x 3, 3 x 2, 6 x 1"),
        ] {
            let error = hybrid(ulysses, ring, ranks).unwrap_err().to_string();
            assert!(error.contains(say), "{error}");
        }
        assert!(whole("ring", Some(2), 4).unwrap_err().to_string().contains("a group of 4 ranks"));
        assert_eq!(whole("ring", None, 4), Ok(4));
    }
}
