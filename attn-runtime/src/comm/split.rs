//! Who belongs to which group after a split.

/// The members of a color, by their numbers in the group that is split, in the order of their keys (then of these
/// numbers). `numbers` are color and key of each rank.
pub(super) fn members(numbers: &[(usize, usize)], color: usize) -> Vec<usize> {
    let mut members: Vec<usize> = (0..numbers.len()).filter(|&member| numbers[member].0 == color).collect();
    members.sort_by_key(|&member| (numbers[member].1, member));
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_color_are_numbered_by_key_and_then_as_before() {
        let numbers = [(0, 2), (1, 0), (0, 1), (0, 2)];
        assert_eq!(members(&numbers, 0), [2, 0, 3]);
        assert_eq!(members(&numbers, 1), [1]);
        assert_eq!(members(&numbers, 7), []);
    }
}
