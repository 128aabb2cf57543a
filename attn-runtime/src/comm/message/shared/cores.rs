//! Which cores the ranks of a host may use: whether each has one for itself to wait on.

use std::collections::BTreeSet;

/// More cores than any machine has.
const MANY: usize = 1 << 16;

/// The cores that this process may use, as Linux writes them: `0-3,8`; empty if it does not say.
pub(super) fn own() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.map(|list| list.trim().to_owned()).unwrap_or_default()
}

/// How many cores these processes may use together. (A launcher may have bound each of them to some of its own.)
pub(super) fn together<'l>(lists: impl Iterator<Item = &'l str>) -> usize {
    let ranges = lists.flat_map(|list| list.split(',')).filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse::<usize>().ok()?.min(MANY))
    });
    ranges.flatten().collect::<BTreeSet<usize>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_counted_once() {
        assert_eq!(together(["0-3,8", "2-5", "8"].into_iter()), 7);
        assert_eq!(together(["0", "1"].into_iter()), 2);
        assert_eq!(together(["", "nonsense", "3-1"].into_iter()), 0);
    }
}
