//! How far results are off.

use attn::Element;

/// `||a - b|| / ||b||` in the 2-norm.
pub fn relative_error<T: Element>(result: &[T], exact: &[f64]) -> f64 {
    assert_eq!(result.len(), exact.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = square(&mut result.iter().zip(exact).map(|(a, b)| f64::from(a.to_f32()) - b));
    let norm = square(&mut exact.iter().copied());
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}

/// The largest difference of two LSEs; infinities must stand in the same places.
pub fn lse_error(result: &[f32], exact: &[f32]) -> f32 {
    assert_eq!(result.len(), exact.len());
    let difference = |(a, b): (&f32, &f32)| if a == b { 0.0 } else { (a - b).abs() };
    result
        .iter()
        .zip(exact)
        .map(difference)
        .fold(0.0, |worst, x| if x > worst || x.is_nan() { x } else { worst })
}
