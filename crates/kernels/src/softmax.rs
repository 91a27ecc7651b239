//! The softmax of columns: scores of neighbouring queries stand side by side, so every operation is
//! on whole vectors, and none is across one.

use crate::math::LANES;
use crate::microkernels::{Format, GemmPlan, MAX_COLUMNS};
use crate::vector::{self, Vector, for_each_vector};

/// Of every column, the sum by which its values are to be divided.
pub(crate) type Sums = [f32; MAX_COLUMNS];

/// What scores are to be multiplied with for [`softmax_columns`]: in bf16 it takes powers of two.
pub(crate) fn unit(plan: &GemmPlan) -> f32 {
    if plan.format == Format::Bf16 { std::f32::consts::LOG2_E } else { 1.0 }
}

/// From `scores`, `[keys, columns]`, to the probabilities times their sums as a right operand, whose
/// steps are keys or pairs of them; the sums. A column with a NaN has a NaN as its sum.
///
/// # Panics
/// The panel does not have the plan's steps for so many keys.
pub(crate) fn softmax_columns(plan: &GemmPlan, scores: &[f32], panel: &mut [u32]) -> Sums {
    let keys = scores.len() / plan.columns;
    let used = keys.div_ceil(plan.format.group()) * plan.columns;
    let (panel, padding) = panel.split_at_mut(used);
    padding.fill(0);
    let (isa, mut sums) = (plan.tier.isa(), [0.0; MAX_COLUMNS]);
    match (plan.format, plan.columns) {
        // Where bf16 is an instruction, panels are two vectors wide.
        (Format::Bf16, _) => softmax_bf16(isa, scores, panel, &mut sums),
        (_, LANES) => softmax_one_vector(isa, scores, panel, &mut sums),
        (_, _) => softmax_two_vectors(isa, scores, panel, &mut sums),
    }
    sums
}

for_each_vector! {
    fn softmax_bf16(scores: &[f32], panel: &mut [u32], sums: &mut Sums) = softmax_bf16_body;
}
for_each_vector! {
    fn softmax_one_vector(scores: &[f32], panel: &mut [u32], sums: &mut Sums) = softmax_one_vector_body;
}
for_each_vector! {
    fn softmax_two_vectors(scores: &[f32], panel: &mut [u32], sums: &mut Sums) = softmax_two_vectors_body;
}

/// The columns' greatest numbers, `N` vectors of them.
#[inline(always)]
fn column_max<V: Vector, const N: usize>(rows: &[[[f32; LANES]; N]]) -> [V; N] {
    let mut most = [V::splat(f32::MIN); N];
    for row in rows {
        for i in 0..N {
            most[i] = V::load(&row[i]).max(most[i]);
        }
    }
    most
}

#[inline(always)]
fn softmax_bf16_body<V: Vector>(scores: &[f32], panel: &mut [u32], sums: &mut Sums) {
    let rows = scores.as_chunks::<LANES>().0.as_chunks::<2>().0;
    let out = panel.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0;
    let (most, mut total) = (column_max::<V, 2>(rows), [V::splat(0.0); 2]);
    let (pairs, last) = rows.as_chunks::<2>();
    for (pair, out) in pairs.iter().zip(&mut *out) {
        for i in 0..2 {
            let low = vector::exp2_approx(V::load(&pair[0][i]).sub(most[i]));
            let high = vector::exp2_approx(V::load(&pair[1][i]).sub(most[i]));
            total[i] = total[i].add(low).add(high);
            low.pair_bf16(high, &mut out[i]);
        }
    }
    if let ([row], Some(out)) = (last, out.last_mut()) {
        for i in 0..2 {
            let low = vector::exp2_approx(V::load(&row[i]).sub(most[i]));
            total[i] = total[i].add(low);
            low.pair_bf16(V::splat(0.0), &mut out[i]);
        }
    }
    put_sums(total, sums);
}

#[inline(always)]
fn softmax_f32<V: Vector, const N: usize>(scores: &[f32], panel: &mut [u32], sums: &mut Sums) {
    let rows = scores.as_chunks::<LANES>().0.as_chunks::<N>().0;
    let out = panel.as_chunks_mut::<LANES>().0.as_chunks_mut::<N>().0;
    let (most, mut total) = (column_max::<V, N>(rows), [V::splat(0.0); N]);
    for (row, out) in rows.iter().zip(out) {
        for i in 0..N {
            let value = vector::exp(V::load(&row[i]).sub(most[i]));
            total[i] = total[i].add(value);
            value.store_bits(&mut out[i]);
        }
    }
    put_sums(total, sums);
}

#[inline(always)]
fn softmax_one_vector_body<V: Vector>(scores: &[f32], panel: &mut [u32], sums: &mut Sums) {
    softmax_f32::<V, 1>(scores, panel, sums);
}

#[inline(always)]
fn softmax_two_vectors_body<V: Vector>(scores: &[f32], panel: &mut [u32], sums: &mut Sums) {
    softmax_f32::<V, 2>(scores, panel, sums);
}

#[inline(always)]
fn put_sums<V: Vector, const N: usize>(total: [V; N], sums: &mut Sums) {
    let sums = sums.as_chunks_mut::<LANES>().0;
    for i in 0..N {
        total[i].store(&mut sums[i]);
    }
}
