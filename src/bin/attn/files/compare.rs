//! How far two runs are apart.

use attn::Element;

use super::compute::{Results, Rows};

/// A distance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Difference {
    /// The norm of the difference, divided by that of what is compared with.
    pub(super) relative: f64,
    /// The largest absolute difference of two elements.
    pub(super) largest: f64,
}

impl<T: Element> Results<T> {
    /// How far these are from others, over all outputs. Where both are not a number they do not differ; where one
    /// is, the difference is infinite.
    pub(super) fn difference<U: Element>(&self, from: &Results<U>) -> Difference {
        let (mut square, mut whole, mut largest) = (0.0_f64, 0.0_f64, 0.0_f64);
        for (a, b) in self.elements().zip(from.elements()) {
            if a == b || a.is_nan() && b.is_nan() {
                whole += if b.is_finite() { b * b } else { 0.0 };
                continue;
            }
            let difference = (a - b).abs();
            let difference = if difference.is_nan() { f64::INFINITY } else { difference };
            square += difference * difference;
            whole += if b.is_finite() { b * b } else { 0.0 };
            largest = largest.max(difference);
        }
        let relative = if square == 0.0 { 0.0 } else { square.sqrt() / whole.sqrt() };
        Difference { relative, largest }
    }

    fn elements(&self) -> impl Iterator<Item = f64> {
        let rows = std::iter::once(&self.rows).chain(&self.joint);
        rows.flat_map(|rows: &Rows<T>| rows.out.iter().map(|x| f64::from(x.to_f32())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(out: &[f32]) -> Results<f32> {
        Results {
            rows: Rows { out: out.to_vec(), shape: [1, 1, 1, out.len()], lse: Vec::new() },
            joint: None,
        }
    }

    #[track_caller]
    fn check(found: &[f32], expected: &[f32], relative: f64, largest: f64) {
        let difference = results(found).difference(&results(expected));
        assert_eq!((difference.relative, difference.largest), (relative, largest));
    }

    #[test]
    fn the_norm_of_the_difference_is_divided_by_the_others() {
        check(&[3.0, 4.5], &[3.0, 4.0], 0.1, 0.5);
        check(&[0.0, 0.0], &[0.0, 0.0], 0.0, 0.0);
        check(&[1.0], &[0.0], f64::INFINITY, 1.0);
    }

    #[test]
    fn only_one_sided_nans_and_infinities_differ() {
        check(&[f32::NAN, f32::INFINITY, 1.0], &[f32::NAN, f32::INFINITY, 1.0], 0.0, 0.0);
        check(&[f32::NAN, 1.0], &[1.0, 1.0], f64::INFINITY, f64::INFINITY);
        check(&[1.0, 1.0], &[f32::NAN, 1.0], f64::INFINITY, f64::INFINITY);
        check(&[f32::INFINITY, 1.0], &[f32::NEG_INFINITY, 1.0], f64::INFINITY, f64::INFINITY);
    }
}
