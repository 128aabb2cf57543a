//! What many measurements of one thing say.

/// Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Times {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
    /// The distance between the quartiles, in which the middle half lies.
    pub(super) spread: f64,
}

impl Times {
    pub(super) const ZERO: Self = Self { median: 0.0, least: 0.0, most: 0.0, spread: 0.0 };

    /// Sums up at least one measurement.
    pub(super) fn of(mut measured: Vec<f64>) -> Self {
        measured.sort_by(f64::total_cmp);
        let [least, lower, median, upper, most] =
            [0.0, 0.25, 0.5, 0.75, 1.0].map(|part| quantile(&measured, part));
        Self { median, least, most, spread: upper - lower }
    }
}

/// The value below which a part of the sorted ones lie, on a line between its neighbours.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_neighbours() {
        let times = Times::of(vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!(times, Times { median: 2.5, least: 1.0, most: 4.0, spread: 1.5 });
        assert_eq!(Times::of(vec![7.0]), Times { median: 7.0, least: 7.0, most: 7.0, spread: 0.0 });
    }
}
