//! How heads divide among ranks.

use core::fmt;

/// No group has more ranks than this, and no list of degrees is longer.
const MOST: usize = 1 << 16;

/// The divisors of `n` up to 65536, ascending. None for zero.
pub fn divisors(n: usize) -> Vec<usize> {
    (1..=n.min(MOST)).filter(|d| n.is_multiple_of(*d)).collect()
}

/// The Ulysses degrees that [`check_head_split`] accepts for these head counts, ascending.
pub fn degrees(heads: usize, kv_heads: usize) -> Vec<usize> {
    divisors(heads).into_iter().filter(|&degree| check_head_split(heads, kv_heads, degree).is_ok()).collect()
}

fn kv_divides(kv_heads: usize, degree: usize) -> bool {
    kv_heads.is_multiple_of(degree) || degree.is_multiple_of(kv_heads)
}

/// Checks that every group of grouped-query attention has the same number of query heads.
///
/// # Errors
/// If a count is zero or `kv_heads` does not divide `heads`.
pub fn check_kv_group(heads: usize, kv_heads: usize) -> Result<(), KvGroupError> {
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(KvGroupError { heads, kv_heads });
    }
    Ok(())
}

/// Checks the strict head split of a Ulysses exchange: the degree divides the query heads, and divides the key and
/// value heads or is a multiple of them (then each of those heads goes to `degree / kv_heads` ranks).
///
/// # Errors
/// If it does not; the error lists the degrees that would do.
pub fn check_head_split(heads: usize, kv_heads: usize, degree: usize) -> Result<(), HeadSplitError> {
    if degree == 0
        || heads == 0
        || kv_heads == 0
        || !heads.is_multiple_of(degree)
        || !kv_divides(kv_heads, degree)
    {
        return Err(HeadSplitError { heads, kv_heads, degree });
    }
    Ok(())
}

/// Query heads that key and value heads do not divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvGroupError {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
}

impl fmt::Display for KvGroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { heads, kv_heads } = self;
        write!(
            f,
            "{kv_heads} key/value heads do not divide {heads} query heads: kv_heads may be {}",
            list(&divisors(*heads))
        )
    }
}

impl core::error::Error for KvGroupError {}

/// Head counts that a Ulysses degree does not divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSplitError {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Number of ranks that were to share them.
    pub degree: usize,
}

impl fmt::Display for HeadSplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { heads, kv_heads, degree } = self;
        if *degree == 0 || !heads.is_multiple_of(*degree) {
            write!(f, "{heads} query heads do not divide among {degree} ranks")?;
        } else {
            write!(f, "{kv_heads} key/value heads neither divide among {degree} ranks nor divide {degree}")?;
        }
        write!(f, ": degrees that do are {}", list(&degrees(*heads, *kv_heads)))
    }
}

impl core::error::Error for HeadSplitError {}

/// `1, 2 and 4`.
pub(crate) fn list(numbers: &[usize]) -> String {
    let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
    match words.split_last() {
        None => String::from("none"),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_degree_of_one_is_always_legal() {
        for heads in 1..20 {
            for kv_heads in divisors(heads) {
                assert_eq!(check_head_split(heads, kv_heads, 1), Ok(()));
            }
        }
    }

    #[test]
    fn a_degree_may_exceed_the_kv_heads_only_as_a_multiple() {
        assert_eq!(check_head_split(8, 2, 4), Ok(()));
        assert_eq!(check_head_split(12, 4, 3), Err(HeadSplitError { heads: 12, kv_heads: 4, degree: 3 }));
        assert_eq!(degrees(12, 4), [1, 2, 4, 12]);
    }

    #[test]
    fn absurd_numbers_are_answered_at_once() {
        assert!(check_head_split(usize::MAX, 1, 2).unwrap_err().to_string().len() < 1000);
        assert!(check_kv_group(1 << 60, 7).unwrap_err().to_string().ends_with("and 65536"));
        for (heads, kv_heads) in [(0, 1), (1, 0), (0, 0)] {
            assert!(check_head_split(heads, kv_heads, 1).unwrap_err().to_string().ends_with("none"));
            assert!(check_kv_group(heads, kv_heads).is_err());
        }
    }

    #[test]
    fn errors_name_the_numbers_and_the_cure() {
        let error = check_head_split(6, 6, 4).unwrap_err().to_string();
        assert_eq!(error, "6 query heads do not divide among 4 ranks: degrees that do are 1, 2, 3 and 6");
        let error = check_head_split(12, 4, 3).unwrap_err().to_string();
        assert!(error.contains("4 key/value heads neither divide among 3 ranks nor divide 3"), "{error}");
        let error = check_kv_group(8, 3).unwrap_err().to_string();
        assert!(error.ends_with("kv_heads may be 1, 2, 4 and 8"), "{error}");
    }
}
