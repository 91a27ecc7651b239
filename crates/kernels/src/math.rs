//! Elementary functions in plain Rust that compilers can vectorise.
//!
//! `FMA` is whether fused multiply-add is an instruction; if not, `mul_add` would be a function call.

/// Numbers of a vector: as many as the widest one has.
pub(crate) const LANES: usize = 16;

/// `a · b + c`.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Adding and then subtracting it rounds a smaller number to an integer, ties to even. After the
/// addition the integer is also in the low bits.
pub(crate) const ROUNDER: f32 = 12_582_912.0; // 1.5 · 2²³

/// The nearest integer of a number whose magnitude is below 2²², ties to even.
#[inline(always)]
pub(crate) fn round(x: f32) -> i32 {
    (x + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()).cast_signed()
}

/// The natural logarithm of 2 in two parts; the first is so short that its multiples are exact.
pub(crate) const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// Coefficients of eˣ around 0 after 1 + x, from the highest power down.
pub(crate) const EXP: [f32; 6] =
    [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// eˣ for x ≤ 88, to about two units in the last place. Below −87 the result is about the smallest
/// normal number rather than zero. NaN stays NaN.
///
/// Polynomial: Cephes' `expf` (S. L. Moshier).
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let mut r = x;
    for part in LN_2 {
        r = fma::<FMA>(n, -part, r);
    }
    let [mut p, rest @ ..] = EXP;
    for c in rest {
        p = fma::<FMA>(p, r, c);
    }
    let p = fma::<FMA>(p * r, r, r + 1.0);
    let exponent = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

/// The error function, to 3e-7.
///
/// The rational approximation of XLA and Eigen (`erf` of f32), with odd powers up to 9 over even ones
/// up to 12; beyond ±3.83 the result is ±1 in f32.
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    const EDGE: f32 = 3.832_507;
    let x = if x > EDGE { EDGE } else { x };
    let x = if x < -EDGE { -EDGE } else { x };
    let s = x * x;
    let mut p = 0.000_229_050_66;
    for c in [0.003_408_291, 0.050_955_694, 0.185_208_32, std::f32::consts::FRAC_2_SQRT_PI] {
        p = fma::<FMA>(p, s, c);
    }
    let mut q = -1.179_160_3e-7;
    for c in [2.354_796_6e-5, 0.001_017_962_5, 0.014_070_47, 0.110_985_05, 0.497_469_25, 1.0] {
        q = fma::<FMA>(q, s, c);
    }
    x * p / q
}

/// `x · Φ(x)`.
#[inline(always)]
pub(crate) fn gelu<const FMA: bool>(x: f32) -> f32 {
    let half = 0.5 * x;
    fma::<FMA>(half, erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), half)
}

/// `x · σ(y)`.
#[inline(always)]
fn gate<const FMA: bool>(x: f32, y: f32) -> f32 {
    let negative = if -y > 80.0 { 80.0 } else { -y };
    x / (1.0 + exp::<FMA>(negative))
}

/// GELU, approximated with the hyperbolic tangent.
#[inline(always)]
pub(crate) fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    // ½ (1 + tanh u) = σ(2u).
    let u = 0.797_884_6 * fma::<FMA>(0.044_715 * x * x, x, x);
    gate::<FMA>(x, 2.0 * u)
}

/// `x · σ(1.702 x)`.
#[inline(always)]
pub(crate) fn quick_gelu<const FMA: bool>(x: f32) -> f32 {
    gate::<FMA>(x, 1.702 * x)
}

/// `max(x, 0)`.
#[inline(always)]
pub(crate) fn relu(x: f32) -> f32 {
    // In this order a NaN stays a NaN.
    if x < 0.0 { 0.0 } else { x }
}

/// The bits of the nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff).wrapping_add((bits >> 16) & 1) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { (bits >> 16) | 0x40 } else { rounded }
}

/// The value of the bits of a bf16.
#[inline(always)]
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The sum of the lanes, always in the same order.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The greatest lane; none of them is NaN.
#[inline(always)]
pub(crate) fn max_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Taylor series in f64, or ±1 where the difference is below the precision of f32.
    fn erf64(x: f64) -> f64 {
        if x.abs() > 5.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn functions_agree_with_double_precision() {
        for i in -8_000..=8_000 {
            let x = i as f32 * 0.01;
            let truth = f64::from(x).exp();
            let error = (f64::from(exp::<true>(x)) - truth).abs() / truth;
            assert!(error < 3e-7, "exp({x}): {error:e}");
            let x = i as f32 * 0.001;
            let error = (f64::from(erf::<true>(x)) - erf64(f64::from(x))).abs();
            assert!(error < 4e-7, "erf({x}): {error:e}");
            let wide = f64::from(x);
            let truth = 0.5 * wide * (1.0 + erf64(wide / 2f64.sqrt()));
            assert!((f64::from(gelu::<false>(x)) - truth).abs() < 2e-6, "gelu({x})");
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            let truth = 0.5 * wide * (1.0 + u.tanh());
            assert!((f64::from(gelu_tanh::<true>(x)) - truth).abs() < 2e-6, "gelu_tanh({x})");
            let truth = wide / (1.0 + (-1.702 * wide).exp());
            assert!((f64::from(quick_gelu::<true>(x)) - truth).abs() < 2e-6, "quick_gelu({x})");
        }
    }

    #[test]
    fn extreme_arguments_give_sensible_results() {
        assert!(exp::<true>(f32::NEG_INFINITY) < 2e-38);
        assert!(exp::<true>(f32::NAN).is_nan() && gelu::<true>(f32::NAN).is_nan());
        assert!(relu(f32::NAN).is_nan() && quick_gelu::<true>(f32::NAN).is_nan());
        assert_eq!(gelu::<true>(1e30), 1e30);
        assert_eq!(gelu::<true>(-1e30), 0.0);
        assert!(gelu_tanh::<true>(-1e4).abs() < 1e-20);
        assert_eq!(round(2.5), 2);
        assert_eq!(round(-3.6), -4);
    }

    #[test]
    fn bf16_rounds_to_even_and_keeps_nan() {
        for x in [0.0, -0.0, 1.0, 1.003_906_3, 3.25, -1e-40, f32::INFINITY, 65_505.0, f32::MAX] {
            assert_eq!(to_bf16(x), u32::from(half::bf16::from_f32(x).to_bits()), "{x}");
        }
        assert!(from_bf16(to_bf16(f32::NAN) as u16).is_nan());
        assert!(from_bf16(to_bf16(f32::from_bits(0x7fff_ffff)) as u16).is_nan());
        assert_eq!(sum_lanes(std::array::from_fn(|i| i as f32)), 120.0);
    }
}
