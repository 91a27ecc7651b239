//! Compares every kernel of every tier that this CPU has with plain loops in double precision.

use super::activations::Activations;
use super::attention::{Heads, SelfAttention};
use super::buffer::Buffer;
use super::cross_kv::{self, CrossKv};
use super::gemm::{ActivationFn, Epilogue, linear};
use super::math::to_bf16;
use super::microkernels::GemmPlan;
use super::packed_weights::PackedWeights;
use super::rotate::{gain, rotate};
use super::rows;
use super::self_kv::{self, SelfKv};
use super::softmax::softmax_columns;
use super::thread_pool::{ThreadPool, with_thread_pool};
use super::vector::{self, Simd, Vector, for_each_vector};
use super::{Isa, Precision};

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

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

/// Pseudo-random numbers between −1 and 1.
fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

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

/// `x Wᵀ + b` of numbers that are rounded as the precision demands, with the allowed error of each sum.
fn plain(precision: Precision, x: &[f32], w: &[f32], b: &[f32], depth: usize) -> Vec<(f64, f64)> {
    let isa = Isa::PORTABLE;
    let (mut x, mut w, mut out) = (x.to_vec(), w.to_vec(), Vec::new());
    if precision == Precision::Int8 {
        for all in [&mut x, &mut w] {
            for row in all.chunks_exact_mut(depth) {
                let plain = row.to_vec();
                rotate(isa, &plain, row);
            }
        }
        w.iter_mut().for_each(|value| *value /= gain(depth));
    }
    for x in x.chunks_exact(depth) {
        let params = rows::quant_params(isa, x);
        let mut integers = vec![0u8; depth];
        rows::quantize(isa, x, params, &mut integers);
        for (w, &b) in w.chunks_exact(depth).zip(b) {
            let scale = w.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
            let term = |i: usize| match precision {
                Precision::F32 => f64::from(x[i]) * f64::from(w[i]),
                Precision::Bf16 => bf16(x[i]) * bf16(w[i]),
                Precision::Int8 => {
                    let weight = (f64::from(w[i]) / f64::from(scale)).round_ties_even();
                    let integer = i32::from(integers[i]) - params.zero_point;
                    f64::from(params.scale) * f64::from(integer) * f64::from(scale) * weight
                }
            };
            let sum: f64 = (0..depth).map(term).sum();
            let size: f64 = (0..depth).map(|i| term(i).abs()).sum();
            out.push((sum + f64::from(b), 1e-6 * (size + f64::from(b.abs())) + 1e-30));
        }
    }
    out
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
                let truth = plain(precision, &x, &w, &b, depth);
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
fn int8_products_are_identical_in_every_tier() {
    let (rows, depth, width) = (19, 200, 70);
    let (x, w, b) = (noise(rows * depth, 5), noise(width * depth, 6), noise(width, 7));
    let results: Vec<Vec<f32>> = Isa::available()
        .filter(|&isa| isa != Isa::PORTABLE) // It rounds once more, without fused multiply-add.
        .map(|isa| {
            let packed = PackedWeights::new(isa, Precision::Int8, &w, &b, depth);
            let mut out = vec![0.0; rows * width];
            product(&x, &packed, Epilogue::STORE, &mut out);
            out
        })
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
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
        (ActivationFn::Gelu, super::math::gelu::<false>),
        (ActivationFn::GeluTanh, super::math::gelu_tanh::<false>),
        (ActivationFn::QuickGelu, super::math::quick_gelu::<false>),
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
        for (precision, tolerance) in PRECISIONS.into_iter().zip([0.0, 0.004, 0.0041]) {
            let packed = PackedWeights::new(isa, precision, &w, &[0.0; 50], 37);
            let mut row = [0.0; 37];
            packed.row(41, &mut row);
            for (value, truth) in row.iter().zip(&w[41 * 37..]) {
                assert!((value - truth).abs() <= tolerance, "{isa} {precision:?}");
            }
        }
    }
}

/// `softmax(q kᵀ / √d) v` of one head in double precision.
fn plain_attention(q: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f64> {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let weights: Vec<f64> = keys.iter().map(|key| (dot(key) * scale).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mix =
        |i: usize| values.iter().zip(&weights).map(|(v, w)| f64::from(v[i]) * w).sum::<f64>() / sum;
    (0..q.len()).map(mix).collect()
}

#[test]
fn self_attention_agrees_with_plain_loops() {
    for isa in Isa::available() {
        for (precision, tolerance) in PRECISIONS.into_iter().zip([2e-6, 0.02, 0.02]) {
            for (tokens, heads, size) in
                [(1, 1, 8), (5, 3, 16), (17, 2, 64), (65, 2, 24), (100, 1, 80)]
            {
                let heads = Heads { count: heads, size };
                let width = heads.width();
                let qkv: Vec<f32> = noise(tokens * 3 * width, 20).iter().map(|v| v * 2.0).collect();
                let mut out = vec![f32::NAN; tokens * width];
                let mut attention = SelfAttention::new(isa, precision, heads);
                with_thread_pool(|pool| attention.run(pool, &qkv, tokens, &mut out));
                let part = |token: usize, part: usize, head: usize| {
                    &qkv[token * 3 * width + part * width + head * size..][..size]
                };
                for (head, query) in (0..heads.count).flat_map(|h| (0..tokens).map(move |t| (h, t)))
                {
                    let keys: Vec<&[f32]> = (0..tokens).map(|t| part(t, 1, head)).collect();
                    let values: Vec<&[f32]> = (0..tokens).map(|t| part(t, 2, head)).collect();
                    let truth = plain_attention(part(query, 0, head), &keys, &values);
                    let got = &out[query * width + head * size..][..size];
                    for (value, truth) in got.iter().zip(truth) {
                        let error = (f64::from(*value) - truth).abs();
                        assert!(error < tolerance, "{isa} {precision:?} {tokens}×{size}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn cross_attention_agrees_with_plain_loops_and_is_independent_of_the_batch() {
    for isa in Isa::available() {
        for (precision, tolerance) in PRECISIONS.into_iter().zip([2e-6, 0.01, 0.02]) {
            for (tokens, size) in [(1, 4), (63, 16), (64, 64), (65, 64), (130, 80)] {
                let heads = Heads { count: 2, size };
                let width = heads.width();
                let tables: Vec<Vec<f32>> =
                    (0..2).map(|n| noise(tokens * 2 * width, 30 + n)).collect();
                let fill = |table: &Vec<f32>| {
                    let mut kv = CrossKv::new(precision, heads);
                    // Remains of an earlier and larger image must not have an effect.
                    let earlier = vec![7.0; 2 * table.len()];
                    kv.fill(&ThreadPool::single_threaded(), isa, &earlier);
                    kv.fill(&ThreadPool::single_threaded(), isa, table);
                    kv
                };
                let kvs: Vec<CrossKv> = tables.iter().map(fill).collect();
                let queries = noise(3 * width, 40);
                let mut out = vec![f32::NAN; 3 * width];
                let items = [(&kvs[0], 1), (&kvs[1], 2)];
                with_thread_pool(|pool| {
                    let scratch = &mut Buffer::new();
                    cross_kv::attend(pool, isa, items.iter().copied(), &queries, scratch, &mut out);
                });
                for (row, table) in [(0, 0), (1, 1), (2, 1)] {
                    let part = |token: usize, part: usize, head: usize| {
                        &tables[table][token * 2 * width + part * width + head * size..][..size]
                    };
                    for head in 0..2 {
                        let keys: Vec<&[f32]> = (0..tokens).map(|t| part(t, 0, head)).collect();
                        let values: Vec<&[f32]> = (0..tokens).map(|t| part(t, 1, head)).collect();
                        let query = &queries[row * width + head * size..][..size];
                        let truth = plain_attention(query, &keys, &values);
                        for (value, truth) in
                            out[row * width + head * size..][..size].iter().zip(truth)
                        {
                            let error = (f64::from(*value) - truth).abs();
                            assert!(
                                error < tolerance,
                                "{isa} {precision:?} {tokens}×{size}: {error}"
                            );
                        }
                    }
                }
                let mut single_threaded = vec![0.0; width];
                let single = [(&kvs[1], 1)];
                let (scratch, query) = (&mut Buffer::new(), &queries[2 * width..]);
                cross_kv::attend(
                    &ThreadPool::single_threaded(),
                    isa,
                    single.iter().copied(),
                    query,
                    scratch,
                    &mut single_threaded,
                );
                assert_eq!(single_threaded, out[2 * width..], "{isa} {precision:?}");
                assert!(kvs[0].bytes() > 0);
            }
        }
    }
}

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

#[test]
fn a_step_of_nothing_does_nothing() {
    let heads = Heads { count: 2, size: 16 };
    for isa in Isa::available() {
        for precision in PRECISIONS {
            let weights = PackedWeights::new(isa, precision, &noise(8 * 32, 60), &[0.0; 8], 32);
            product(&[], &weights, Epilogue::STORE, &mut []);
            let no_outputs = PackedWeights::new(isa, precision, &[], &[], 32);
            product(&noise(32, 61), &no_outputs, Epilogue::STORE, &mut []);
            with_thread_pool(|pool| {
                let scratch = &mut Buffer::new();
                cross_kv::attend(pool, isa, [].into_iter(), &[], scratch, &mut []);
                self_kv::attend(pool, (isa, 0, 1), [].into_iter(), &[], scratch, &mut []);
                SelfAttention::new(isa, precision, heads).run(pool, &[], 0, &mut []);
            });
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

/// Attention of one token at a time agrees with plain loops, also after rows were reordered.
#[test]
fn decoding_attention_agrees_with_plain_loops_after_a_reorder() {
    for isa in Isa::available() {
        for size in [16, 64, 80] {
            let heads = Heads { count: 2, size };
            let width = heads.width();
            let tokens: Vec<Vec<f32>> = (0..5).map(|n| noise(3 * width, 70 + n)).collect();
            let mut kv = SelfKv::new(heads, 1);
            kv.reset(4);
            kv.write(0, 0, 0, &tokens[0]);
            kv.reorder(&[0, 0], 1);
            kv.write(0, 0, 1, &tokens[1]);
            kv.write(0, 1, 1, &tokens[2]);
            // Both rows continue the second one.
            kv.reorder(&[1, 1], 2);
            kv.write(0, 0, 2, &tokens[3]);
            kv.write(0, 1, 2, &tokens[4]);
            let qkv = [&tokens[3][..], &tokens[4]].concat();
            let mut out = vec![f32::NAN; 2 * width];
            with_thread_pool(|pool| {
                let items = [(&kv, 2)].into_iter();
                self_kv::attend(pool, (isa, 0, 1), items, &qkv, &mut Buffer::new(), &mut out);
            });
            for (row, last) in [(0, 3), (1, 4)] {
                for head in 0..2 {
                    let part = |token: usize, part: usize| {
                        &tokens[token][part * width + head * size..][..size]
                    };
                    let keys = [0, 2, last].map(|token| part(token, 1));
                    let values = [0, 2, last].map(|token| part(token, 2));
                    let truth = plain_attention(part(last, 0), &keys, &values);
                    let got = &out[row * width + head * size..][..size];
                    for (value, truth) in got.iter().zip(truth) {
                        assert!((f64::from(*value) - truth).abs() < 2e-6, "{isa} {size} {row}");
                    }
                }
            }
        }
    }
}
