//! Exponentials and softmax.

use super::{Isa, Precision, noise};
use crate::microkernels::GemmPlan;
use crate::softmax::softmax_columns;
use crate::vector::{self, Simd, Vector, for_each_vector};

for_each_vector! {
    /// Both exponentials of every number.
    fn exponentials(x: &[f32], exact: &mut [f32], rough: &mut [f32]) = exponentials_body;
}

#[inline(always)]
fn exponentials_body<S: Simd>(simd: S, x: &[f32], exact: &mut [f32], rough: &mut [f32]) {
    let (exact, rough) = (exact.as_chunks_mut().0, rough.as_chunks_mut().0);
    for ((x, exact), rough) in x.as_chunks().0.iter().zip(exact).zip(rough) {
        vector::exp(simd, simd.load(x)).store(exact);
        vector::exp2_approx(simd, simd.load(x)).store(rough);
    }
}

#[test]
fn vector_exponentials_agree_with_double_precision() {
    let x: Vec<f32> = (0..16 * 500).map(|i| i as f32 * -0.01).collect();
    for isa in Isa::available() {
        let (mut exact, mut rough) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        exponentials(isa, &x, &mut exact, &mut rough);
        for ((&x, exact), rough) in x.iter().zip(exact).zip(rough) {
            let (e, two) = (f64::from(x).exp(), f64::from(x).exp2());
            assert!((f64::from(exact) / e - 1.0).abs() < 3e-7, "{isa}: e^{x} = {exact}");
            assert!((f64::from(rough) / two - 1.0).abs() < 8e-5, "{isa}: 2^{x} = {rough}");
        }
        let (mut exact, mut rough) = ([0.0; 16], [0.0; 16]);
        let ends: [f32; 16] =
            std::array::from_fn(|i| [f32::NAN, f32::NEG_INFINITY, -1e30, -126.4][i % 4]);
        exponentials(isa, &ends, &mut exact, &mut rough);
        for i in 0..16 {
            let (exact, rough) = (exact[i], rough[i]);
            assert_eq!((exact.is_nan(), rough.is_nan()), (i % 4 == 0, i % 4 == 0), "{isa}");
            assert!(i % 4 == 0 || (exact < 2e-38 && (0.0..2e-38).contains(&rough)), "{isa} {i}");
        }
    }
}

#[test]
fn softmax_columns_gives_probabilities_and_keeps_nan_in_its_column() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let precision = if isa.tier().has_bf16() { precision } else { Precision::F32 };
            let plan = GemmPlan::new(isa, precision);
            for keys in [1, 2, 7, 64, 577] {
                let mut scores = noise(keys * plan.columns, 50);
                scores.iter_mut().for_each(|score| *score *= 20.0);
                scores[3] = f32::NAN;
                let steps = plan.steps(keys);
                let mut panel = vec![u32::MAX; steps * plan.columns];
                let sums = softmax_columns(&plan, &scores, &mut panel);
                for column in (0..plan.columns).filter(|&column| column != 3) {
                    let at = |key: usize| f64::from(scores[key * plan.columns + column]);
                    let max = (0..keys).map(at).fold(f64::MIN, f64::max);
                    let (mut sum, half) = (0.0, precision == Precision::Bf16);
                    for key in 0..keys {
                        let x = at(key) - max;
                        let truth = if half { x.exp2() } else { x.exp() };
                        let group = plan.format.group();
                        let word = panel[key / group * plan.columns + column];
                        let bits = match (half, key % group) {
                            (false, _) => word,
                            (true, 0) => word << 16,
                            (true, _) => word & 0xffff_0000,
                        };
                        let error = (f64::from(f32::from_bits(bits)) - truth).abs();
                        // The difference from the maximum is rounded to f32 first.
                        let share = if half { 0.004 } else { 3e-7 + 1e-7 * x.abs() };
                        assert!(error <= share * truth + 1e-37, "{isa} {keys}: {x}, {error}");
                        sum += truth;
                    }
                    let error = (f64::from(sums[column]) / sum - 1.0).abs();
                    assert!(error < if half { 1e-4 } else { 1e-6 }, "{isa} {keys}: {error}");
                }
                assert!(sums[3].is_nan(), "{isa} {precision:?} {keys}");
                // The padding of the last step is zero: there are no values to weight.
                let used = keys.div_ceil(plan.format.group());
                assert!(panel[used * plan.columns..].iter().all(|&word| word == 0));
                if precision == Precision::Bf16 && keys % 2 == 1 {
                    let last = &panel[(used - 1) * plan.columns..][..plan.columns];
                    assert!(last.iter().all(|word| word >> 16 == 0), "{isa} {keys}");
                }
            }
        }
    }
}
