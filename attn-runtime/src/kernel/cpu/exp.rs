//! An exponential that compilers turn into vector code.

/// `exp(x)` for `x <= 0`, to about one unit in the last place. Below -87.3, where the result would leave the normal
/// numbers, it is zero; NaN stays NaN.
///
/// Cody and Waite's reduction `x = n ln 2 + r` with ln 2 in two parts, a Taylor polynomial of degree 7 for `exp(r)`,
/// `|r| <= 0.35`, and `2^n` put together from bits (W. J. Cody, W. Waite, "Software Manual for the Elementary
/// Functions", 1980, chapter 6).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.3;
    /// Adding it leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    let power = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < LEAST { 0.0 } else { series * power }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn agrees_with_float64_to_an_ulp_and_a_half() {
        let mut x = 0.0_f32;
        while x > -87.3 {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error <= 1.5 * f64::from(f32::EPSILON), "exp({x}): relative error {error:e}");
            x -= 0.000_37;
        }
    }

    #[test]
    fn the_ends_are_exact() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
