//! The softmax of columns: the scores of neighbouring queries lie side by side, so every operation
//! is on whole vectors and none is across lanes.

use crate::math::LANES;
use crate::microkernels::{Format, GemmPlan, MAX_COLUMNS};
use crate::vector::{self, Simd, Vector, for_each_vector};

/// For each column the sum of its weights, by which its weighted values must be divided.
pub(crate) type ColumnSums = [f32; MAX_COLUMNS];

/// The factor of the scores that [`softmax_columns`] expects: in bf16 it raises 2, not e.
pub(crate) fn score_scale(plan: &GemmPlan) -> f32 {
    if plan.format == Format::Bf16 { std::f32::consts::LOG2_E } else { 1.0 }
}

/// Turns `scores`, `[keys, columns]`, into unnormalised probabilities as a panel, whose steps are
/// keys or pairs of them. Returns their sums. The sum of a column with a NaN is NaN.
///
/// # Panics
/// The panel has fewer steps than there are keys or pairs of them.
pub(crate) fn softmax_columns(plan: &GemmPlan, scores: &[f32], panel: &mut [u32]) -> ColumnSums {
    let keys = scores.len() / plan.columns;
    let used = keys.div_ceil(plan.format.group()) * plan.columns;
    let (panel, padding) = panel.split_at_mut(used);
    padding.fill(0);
    let (isa, mut sums) = (plan.isa, [0.0; MAX_COLUMNS]);
    match (plan.format, plan.columns) {
        // CPUs with bf16 instructions have panels of two vectors.
        (Format::Bf16, _) => softmax_bf16(isa, scores, panel, &mut sums),
        (_, LANES) => softmax_one_vector(isa, scores, panel, &mut sums),
        (_, _) => softmax_two_vectors(isa, scores, panel, &mut sums),
    }
    sums
}

for_each_vector! {
    fn softmax_bf16(scores: &[f32], panel: &mut [u32], sums: &mut ColumnSums) = softmax_bf16_body;
}
for_each_vector! {
    fn softmax_one_vector(scores: &[f32], panel: &mut [u32], sums: &mut ColumnSums)
        = softmax_one_vector_body;
}
for_each_vector! {
    fn softmax_two_vectors(scores: &[f32], panel: &mut [u32], sums: &mut ColumnSums)
        = softmax_two_vectors_body;
}

/// The greatest score of each column, in `N` vectors.
#[inline(always)]
fn column_max<S: Simd, const N: usize>(simd: S, rows: &[[[f32; LANES]; N]]) -> [S::Vector; N] {
    let mut max = [simd.splat(f32::MIN); N];
    for row in rows {
        for i in 0..N {
            max[i] = simd.load(&row[i]).max(max[i]);
        }
    }
    max
}

#[inline(always)]
fn softmax_bf16_body<S: Simd>(simd: S, scores: &[f32], panel: &mut [u32], sums: &mut ColumnSums) {
    let rows = scores.as_chunks::<LANES>().0.as_chunks::<2>().0;
    let out = panel.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0;
    let (max, mut total) = (column_max::<S, 2>(simd, rows), [simd.splat(0.0); 2]);
    let (pairs, last) = rows.as_chunks::<2>();
    for (pair, out) in pairs.iter().zip(&mut *out) {
        for i in 0..2 {
            let low = vector::exp2_approx(simd, simd.load(&pair[0][i]).sub(max[i]));
            let high = vector::exp2_approx(simd, simd.load(&pair[1][i]).sub(max[i]));
            total[i] = total[i].add(low).add(high);
            low.pair_bf16(high, &mut out[i]);
        }
    }
    if let ([row], Some(out)) = (last, out.last_mut()) {
        for i in 0..2 {
            let low = vector::exp2_approx(simd, simd.load(&row[i]).sub(max[i]));
            total[i] = total[i].add(low);
            low.pair_bf16(simd.splat(0.0), &mut out[i]);
        }
    }
    write_sums(total, sums);
}

#[inline(always)]
fn softmax_f32<S: Simd, const N: usize>(
    simd: S,
    scores: &[f32],
    panel: &mut [u32],
    sums: &mut ColumnSums,
) {
    let rows = scores.as_chunks::<LANES>().0.as_chunks::<N>().0;
    let out = panel.as_chunks_mut::<LANES>().0.as_chunks_mut::<N>().0;
    let (max, mut total) = (column_max::<S, N>(simd, rows), [simd.splat(0.0); N]);
    for (row, out) in rows.iter().zip(out) {
        for i in 0..N {
            let value = vector::exp(simd, simd.load(&row[i]).sub(max[i]));
            total[i] = total[i].add(value);
            value.store_bits(&mut out[i]);
        }
    }
    write_sums(total, sums);
}

#[inline(always)]
fn softmax_one_vector_body<S: Simd>(
    simd: S,
    scores: &[f32],
    panel: &mut [u32],
    sums: &mut ColumnSums,
) {
    softmax_f32::<S, 1>(simd, scores, panel, sums);
}

#[inline(always)]
fn softmax_two_vectors_body<S: Simd>(
    simd: S,
    scores: &[f32],
    panel: &mut [u32],
    sums: &mut ColumnSums,
) {
    softmax_f32::<S, 2>(simd, scores, panel, sums);
}

#[inline(always)]
fn write_sums<V: Vector, const N: usize>(total: [V; N], sums: &mut ColumnSums) {
    let sums = sums.as_chunks_mut::<LANES>().0;
    for i in 0..N {
        total[i].store(&mut sums[i]);
    }
}
