//! The exponential as straight-line arithmetic, so that loops over it vectorise on every processor.

/// `eˣ`, within 3e-7 relative for `x` in `[-87, 88]`; 0 below, infinity above. Plain products and sums, because a fused
/// multiply-add is a library call on processors without one.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // eˣ = 2ⁿ·eᶠ with n = round(x/ln 2) and f in [−ln2/2, ln2/2]; ln 2 in two parts keeps f exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5·2²³ rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.5, 88.5);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let f = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut series = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        series = series * f + coefficient;
    }
    let fraction = series * (f * f) + f + 1.0;
    // 2ⁿ in two factors: n = 128 alone would overflow the exponent although the result may not.
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    let result = fraction * power(half) * power(n - half);
    let result = if x < -87.5 { 0.0 } else { result };
    let result = if x > 88.5 { f32::INFINITY } else { result };
    if x.is_nan() { x } else { result }
}

/// `2ˣ` for `x` up to 127, within 5e-6 relative, in few steps; below -100 it is 2⁻¹⁰⁰, which further products don't take among
/// the numbers that processors are slow with. For values that are rounded to bf16 next. Fused multiply-adds: only for loops that run where the processor has them, or seldom.
#[inline(always)]
pub(crate) fn exp2_rough(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -100.0 { -100.0 } else { x };
    let rounded = x + ROUND;
    let f = x - (rounded - ROUND);
    // 2ᶠ on [−½, ½], by least squares of the relative error on Chebyshev nodes.
    let series = f.mul_add(9.560_51e-3, 5.591_704e-2);
    let series = series.mul_add(f, 2.402_498e-1);
    let series = series.mul_add(f, 6.931_22e-1);
    let fraction = series.mul_add(f, 0.999_999_2);
    fraction * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

/// `1/x` for `x` in `[2⁻¹²⁰, 2¹²⁰]`, within 1e-5 relative: products and sums, which are several times faster than division
/// where a loop over them vectorises. For values that are rounded to bf16 next, as in [`exp2_rough`].
#[inline(always)]
pub(crate) fn reciprocal_rough(x: f32) -> f32 {
    // The difference of the bits is the reciprocal within an eighth; one cubic and one quadratic step from there.
    const MAGIC: u32 = 0x7ef3_11c7;
    let first = f32::from_bits(MAGIC.wrapping_sub(x.to_bits()));
    let error = (-x).mul_add(first, 1.0);
    let second = first.mul_add(error.mul_add(error, error), first);
    let error = (-x).mul_add(second, 1.0);
    second.mul_add(error, second)
}

#[cfg(test)]
mod tests {
    use super::{exp, exp2_rough, reciprocal_rough};

    #[test]
    fn the_rough_reciprocal_is_near_the_reciprocal() {
        for exponent in -120..120 {
            for step in 0..200 {
                let x = (1.0 + step as f32 / 200.0) * (exponent as f32).exp2();
                let error = (f64::from(reciprocal_rough(x)) * f64::from(x) - 1.0).abs();
                assert!(error < 1e-5, "1/{x} is off by {error}");
            }
        }
        assert!(reciprocal_rough(f32::NAN).is_nan());
    }

    #[test]
    fn the_rough_form_is_near_the_power_of_two() {
        for step in -100_000..10_000 {
            let x = step as f32 / 1000.0;
            let exact = f64::from(x).exp2();
            let error = (f64::from(exp2_rough(x)) - exact).abs() / exact;
            assert!(error < 5e-6, "2^{x} is off by {error}");
        }
        assert!(exp2_rough(f32::NEG_INFINITY) < 1e-30);
        assert!(exp2_rough(f32::NAN).is_nan());
    }

    #[test]
    fn equals_the_exponential() {
        for step in -86_000..88_000 {
            let x = step as f32 / 1000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
