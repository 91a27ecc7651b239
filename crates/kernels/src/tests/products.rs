//! Matrix products, and what is done to their results.

use super::{Isa, PRECISIONS, Precision, noise};
use crate::activations::Activations;
use crate::gemm::{ActivationFn, Epilogue, linear};
use crate::math::{self, to_bf16};
use crate::microkernels::{Format, GROUP_LIMIT, GemmPlan};
use crate::packed_weights::PackedWeights;
use crate::rotate::{gain, rotate, rotate_back};
use crate::rows;
use crate::thread_pool::{ThreadPool, with_thread_pool};

/// Rows, depth and width: one of each, odd numbers, whole blocks, one more and one less.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 64, 33),
    (2, 3, 5),
    (5, 17, 31),
    (12, 64, 32),
    (13, 65, 97),
    (16, 128, 16),
    (17, 48, 64),
    (31, 100, 40),
    (33, 130, 65),
    (64, 256, 128),
    (97, 384, 200),
];

fn product(x: &[f32], weights: &PackedWeights, epilogue: Epilogue, out: &mut [f32]) {
    let (mut activations, depth) = (Activations::default(), weights.depth());
    with_thread_pool(|pool| {
        activations.fill_with(pool, weights, x.len() / depth, |row, values| {
            values.copy_from_slice(&x[row * depth..][..depth]);
        });
        linear(pool, &activations, weights, out, epilogue);
    });
}

fn bf16(value: f32) -> f64 {
    f64::from(f32::from_bits(to_bf16(value) << 16))
}

/// `x Wᵀ + b` of numbers that are rounded as the precision demands, in 8 bits to the integers of `packed`,
/// with the allowed error of each sum.
fn plain(
    precision: Precision,
    packed: &PackedWeights,
    x: &[f32],
    w: &[f32],
    b: &[f32],
) -> Vec<(f64, f64)> {
    let depth = packed.depth();
    let isa = Isa::PORTABLE;
    let (mut x, mut out) = (x.to_vec(), Vec::new());
    if precision == Precision::Int8 {
        rotate_rows(&mut x, depth);
    }
    for x in x.chunks_exact(depth) {
        let params = rows::quant_params(isa, x);
        let mut integers = vec![0u8; depth];
        rows::quantize(isa, x, params, &mut integers);
        for (column, (w, &b)) in w.chunks_exact(depth).zip(b).enumerate() {
            let (weights, scale) = packed.integers(column);
            let term = |i: usize| match precision {
                Precision::F32 => f64::from(x[i]) * f64::from(w[i]),
                Precision::Bf16 => bf16(x[i]) * bf16(w[i]),
                Precision::Int8 => {
                    let integer = i32::from(integers[i]) - params.zero_point;
                    let product = integer * i32::from(weights[i]);
                    f64::from(params.scale) * f64::from(scale) * f64::from(product)
                }
            };
            let sum: f64 = (0..depth).map(term).sum();
            let size: f64 = (0..depth).map(|i| term(i).abs()).sum();
            out.push((sum + f64::from(b), 1e-6 * (size + f64::from(b.abs())) + 1e-30));
        }
    }
    out
}

fn rotate_rows(rows: &mut [f32], depth: usize) {
    for row in rows.chunks_exact_mut(depth) {
        let plain = row.to_vec();
        rotate(Isa::PORTABLE, &plain, row);
    }
}

#[test]
fn products_agree_with_plain_loops_for_every_tier_and_shape() {
    for isa in Isa::available() {
        for precision in PRECISIONS {
            for (rows, depth, width) in SHAPES {
                let (x, w, b) = (noise(rows * depth, 1), noise(width * depth, 2), noise(width, 3));
                let packed = PackedWeights::new(isa, precision, &w, &b, depth);
                let mut out = vec![f32::NAN; rows * width];
                product(&x, &packed, Epilogue::STORE, &mut out);
                let truth = plain(precision, &packed, &x, &w, &b);
                for (i, (&value, (sum, tolerance))) in out.iter().zip(truth).enumerate() {
                    let error = (f64::from(value) - sum).abs();
                    let shape = (rows, depth, width);
                    assert!(
                        error <= tolerance,
                        "{isa} {precision:?} {shape:?} at {i}: {value} for {sum}"
                    );
                }
            }
        }
    }
}

#[test]
fn int8_products_are_identical_in_tiers_with_the_same_weights() {
    let (rows, depth, width) = (19, 200, 70);
    let (x, w, b) = (noise(rows * depth, 5), noise(width * depth, 6), noise(width, 7));
    let results: Vec<(Vec<i8>, Vec<f32>)> = Isa::available()
        .filter(|&isa| isa != Isa::PORTABLE) // It rounds once more, without fused multiply-add.
        .map(|isa| {
            let packed = PackedWeights::new(isa, Precision::Int8, &w, &b, depth);
            let mut out = vec![0.0; rows * width];
            product(&x, &packed, Epilogue::STORE, &mut out);
            (packed.integers(0).0[..depth].to_vec(), out)
        })
        .collect();
    for (weights, out) in &results {
        let same = results.iter().filter(|(other, _)| other == weights);
        assert!(same.into_iter().all(|(_, other)| other == out));
    }
}

#[test]
fn weights_in_8_bits_are_the_nearest_integers() {
    for isa in Isa::available() {
        for (depth, width) in [(1, 3), (7, 5), (64, 33), (200, 40)] {
            let mut w = noise(width * depth, 30);
            let packed = PackedWeights::new(isa, Precision::Int8, &w, &vec![0.0; width], depth);
            rotate_rows(&mut w, depth);
            for (column, row) in w.chunks_exact(depth).enumerate() {
                let (integers, scale) = packed.integers(column);
                for (&integer, weight) in integers.iter().zip(row) {
                    let error = f32::from(integer) * scale - weight / gain(depth);
                    assert!(error.abs() <= scale * 0.501, "{isa} {depth} {column}: {error}");
                }
                assert!(integers[depth..].iter().all(|&padding| padding == 0), "{isa}");
                // Not more than needed: a step is at most a fiftieth of the largest weight.
                let largest = integers.iter().map(|integer| integer.unsigned_abs()).max();
                assert!(largest >= Some(GROUP_LIMIT as u8 / 4 - 2), "{isa} {depth}: {largest:?}");
            }
        }
    }
}

#[test]
fn the_largest_operands_do_not_overflow_sums_of_16_bits() {
    // All weights are equal, so that each group reaches its limit, and all activations are 255.
    let depth = 64;
    for isa in Isa::available() {
        for sign in [1.0, -1.0] {
            let plan = GemmPlan::new(isa, Precision::Int8);
            // Rows that are constant once they are rotated.
            let (mut x, mut w) = (vec![1.0; depth], vec![sign; depth]);
            rotate_back(isa, &mut x);
            rotate_back(isa, &mut w);
            let packed = PackedWeights::new(isa, Precision::Int8, &w, &[0.0], depth);
            let (integers, _) = packed.integers(0);
            if plan.format == Format::Int8Sums16 {
                assert!(integers.iter().all(|&w| i32::from(w) * 4 * sign as i32 > GROUP_LIMIT - 6));
            }
            let mut out = [0.0];
            product(&x, &packed, Epilogue::STORE, &mut out);
            let [(sum, tolerance)] = plain(Precision::Int8, &packed, &x, &w, &[0.0])[..] else {
                panic!("one sum")
            };
            assert!((f64::from(out[0]) - sum).abs() <= tolerance, "{isa} {sign}: {} {sum}", out[0]);
        }
    }
}

#[test]
fn groups_of_weights_stay_within_their_limit() {
    for isa in Isa::available() {
        if GemmPlan::new(isa, Precision::Int8).format != Format::Int8Sums16 {
            continue;
        }
        let (depth, width) = (203, 90);
        let mut w = noise(width * depth, 31);
        w[depth + 3] = 40.0;
        let packed = PackedWeights::new(isa, Precision::Int8, &w, &vec![0.0; width], depth);
        for column in 0..width {
            for eight in packed.integers(column).0.as_chunks::<8>().0 {
                for group in [[0, 1, 4, 5], [2, 3, 6, 7]] {
                    let weights = group.map(|i| i32::from(eight[i]));
                    let positive: i32 = weights.iter().map(|weight| weight.max(&0)).sum();
                    let negative: i32 = weights.iter().map(|weight| weight.min(&0)).sum();
                    assert!(positive <= GROUP_LIMIT && -negative <= GROUP_LIMIT, "{eight:?}");
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let (rows, depth, width) = (75, 160, 90);
    let (x, w, b) = (noise(rows * depth, 8), noise(width * depth, 9), noise(width, 10));
    for isa in Isa::available() {
        for precision in PRECISIONS {
            let packed = PackedWeights::new(isa, precision, &w, &b, depth);
            let mut all = vec![0.0; rows * width];
            product(&x, &packed, Epilogue::apply(ActivationFn::Gelu), &mut all);
            for (first, count) in [(0, 1), (3, 2), (10, 13), (40, 35), (74, 1)] {
                let mut some = vec![0.0; count * width];
                let part = &x[first * depth..(first + count) * depth];
                product(part, &packed, Epilogue::apply(ActivationFn::Gelu), &mut some);
                let expected = &all[first * width..(first + count) * width];
                assert_eq!(some, expected, "{isa} {precision:?} {first}");
            }
        }
    }
}

#[test]
fn epilogues_apply_their_function_or_add_to_the_output() {
    type PortableVector = fn(f32) -> f32;
    let functions: [(ActivationFn, PortableVector); 5] = [
        (ActivationFn::Identity, |x| x),
        (ActivationFn::Relu, |x| x.max(0.0)),
        (ActivationFn::Gelu, math::gelu::<false>),
        (ActivationFn::GeluTanh, math::gelu_tanh::<false>),
        (ActivationFn::QuickGelu, math::quick_gelu::<false>),
    ];
    let (x, w, b) = (noise(7 * 20, 11), noise(37 * 20, 12), noise(37, 13));
    for isa in Isa::available() {
        let packed = PackedWeights::new(isa, Precision::F32, &w, &b, 20);
        let mut sums = vec![0.0; 7 * 37];
        product(&x, &packed, Epilogue::STORE, &mut sums);
        for (function, plain) in functions {
            let mut out = vec![0.0; 7 * 37];
            product(&x, &packed, Epilogue::apply(function), &mut out);
            for (value, &sum) in out.iter().zip(&sums) {
                assert!((value - plain(sum)).abs() < 1e-6, "{isa} {function:?}({sum}) = {value}");
            }
        }
        let mut out = vec![2.0; 7 * 37];
        product(&x, &packed, Epilogue::ADD, &mut out);
        assert!(out.iter().zip(&sums).all(|(value, sum)| *value == 2.0 + sum));
    }
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    let (depth, width) = (70, 40);
    let (w, b) = (noise(width * depth, 14), noise(width, 15));
    for isa in Isa::available() {
        for precision in PRECISIONS {
            let packed = PackedWeights::new(isa, precision, &w, &b, depth);
            let clean = noise(14 * depth, 16);
            let mut expected = vec![0.0; 14 * width];
            product(&clean, &packed, Epilogue::STORE, &mut expected);
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = clean.clone();
                x[3 * depth + 5] = poison;
                let mut out = vec![0.0; 14 * width];
                product(&x, &packed, Epilogue::STORE, &mut out);
                for (row, (values, expected)) in
                    out.chunks(width).zip(expected.chunks(width)).enumerate()
                {
                    let at = format!("{isa} {precision:?} {poison} row {row}");
                    if row == 3 {
                        assert!(values.iter().all(|value| !value.is_finite()), "{at}");
                    } else {
                        assert_eq!(values, expected, "{at}");
                    }
                }
            }
        }
    }
}

#[test]
fn subnormal_numbers_and_outliers_give_correct_products() {
    let (depth, width) = (64, 32);
    let (w, b) = (noise(width * depth, 17), vec![0.0; width]);
    let mut x = noise(3 * depth, 18);
    x[..depth].iter_mut().for_each(|value| *value *= 1e-42);
    x[depth + 7] = 3e37;
    x[2 * depth + 9] = -5e4;
    for isa in Isa::available() {
        for precision in PRECISIONS {
            let packed = PackedWeights::new(isa, precision, &w, &b, depth);
            let mut out = vec![f32::NAN; 3 * width];
            product(&x, &packed, Epilogue::STORE, &mut out);
            assert!(out[..width].iter().all(|value| value.abs() < 1e-38), "{isa} {precision:?}");
            for (row, outlier) in [(1, depth + 7), (2, 2 * depth + 9)] {
                for (column, value) in out[row * width..][..width].iter().enumerate() {
                    let share = x[outlier] * w[column * depth + outlier % depth];
                    let error = (value - share).abs() / x[outlier].abs();
                    assert!(
                        error < 0.02,
                        "{isa} {precision:?} {row} {column}: {value} for {share}"
                    );
                }
            }
        }
    }
}

#[test]
fn rows_of_packed_weights_can_be_read_back() {
    let w = noise(50 * 37, 19);
    for isa in Isa::available() {
        for (precision, tolerance) in PRECISIONS.into_iter().zip([0.0, 0.004, 0.0]) {
            let packed = PackedWeights::new(isa, precision, &w, &[0.0; 50], 37);
            let mut row = [0.0; 37];
            packed.row(41, &mut row);
            let step = packed.columns().scale[41];
            let tolerance = if precision == Precision::Int8 { step * 0.501 } else { tolerance };
            for (value, truth) in row.iter().zip(&w[41 * 37..]) {
                assert!((value - truth).abs() <= tolerance, "{isa} {precision:?}");
            }
        }
    }
}

#[test]
fn a_product_without_rows_or_columns_writes_nothing() {
    for isa in Isa::available() {
        for precision in PRECISIONS {
            let weights = PackedWeights::new(isa, precision, &noise(8 * 32, 60), &[0.0; 8], 32);
            product(&[], &weights, Epilogue::STORE, &mut []);
            let no_outputs = PackedWeights::new(isa, precision, &[], &[], 32);
            product(&noise(32, 61), &no_outputs, Epilogue::STORE, &mut []);
        }
    }
}

#[test]
#[should_panic(expected = "differ in format")]
fn activations_of_another_precision_are_refused() {
    let pack = |precision| PackedWeights::new(Isa::PORTABLE, precision, &[1.0; 8], &[0.0; 2], 4);
    let (float, int8) = (pack(Precision::F32), pack(Precision::Int8));
    let (mut activations, pool) = (Activations::default(), ThreadPool::single_threaded());
    activations.copy_from(&pool, &float, &[1.0; 4]);
    linear(&pool, &activations, &int8, &mut [0.0; 2], Epilogue::STORE);
}
