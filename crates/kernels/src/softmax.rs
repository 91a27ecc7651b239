//! The softmax of columns: scores of neighbouring queries stand side by side, so every operation is
//! on whole vectors, and none is across one.

use crate::math::LANES;
use crate::microkernels::{Format, MOST_COLUMNS, Plan};
use crate::vector::{self, Vector, for_each_vector};

/// Of every column, the sum by which its values are to be divided.
pub(crate) type Sums = [f32; MOST_COLUMNS];

/// What scores are to be multiplied with for [`soften`]: in bf16 it takes powers of two.
pub(crate) fn unit(plan: &Plan) -> f32 {
    if plan.format == Format::Bf16 { std::f32::consts::LOG2_E } else { 1.0 }
}

/// From `scores`, `[keys, columns]`, to the probabilities times their sums as a right operand, whose
/// steps are keys or pairs of them; the sums. A column with a NaN has a NaN as its sum.
///
/// # Panics
/// The panel does not have the plan's steps for so many keys.
pub(crate) fn soften(plan: &Plan, scores: &[f32], panel: &mut [u32]) -> Sums {
    let keys = scores.len() / plan.columns;
    let used = keys.div_ceil(plan.format.group()) * plan.columns;
    let (panel, padding) = panel.split_at_mut(used);
    padding.fill(0);
    let (isa, mut sums) = (plan.tier.isa(), [0.0; MOST_COLUMNS]);
    match (plan.format, plan.columns) {
        // Where bf16 is an instruction, panels are two vectors wide.
        (Format::Bf16, _) => soften_pairs(isa, scores, panel, &mut sums),
        (_, LANES) => soften_narrow(isa, scores, panel, &mut sums),
        (_, _) => soften_wide(isa, scores, panel, &mut sums),
    }
    sums
}

for_each_vector! {
    fn soften_pairs(scores: &[f32], panel: &mut [u32], sums: &mut Sums) = soften_pairs_body;
}
for_each_vector! {
    fn soften_narrow(scores: &[f32], panel: &mut [u32], sums: &mut Sums) = soften_narrow_body;
}
for_each_vector! {
    fn soften_wide(scores: &[f32], panel: &mut [u32], sums: &mut Sums) = soften_wide_body;
}

/// The columns' greatest numbers, `N` vectors of them.
#[inline(always)]
fn greatest<V: Vector, const N: usize>(rows: &[[[f32; LANES]; N]]) -> [V; N] {
    let mut most = [V::splat(f32::MIN); N];
    for row in rows {
        for i in 0..N {
            most[i] = V::load(&row[i]).max(most[i]);
        }
    }
    most
}

#[inline(always)]
fn soften_pairs_body<V: Vector>(scores: &[f32], panel: &mut [u32], sums: &mut Sums) {
    let rows = scores.as_chunks::<LANES>().0.as_chunks::<2>().0;
    let out = panel.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0;
    let (most, mut total) = (greatest::<V, 2>(rows), [V::splat(0.0); 2]);
    let (pairs, last) = rows.as_chunks::<2>();
    for (pair, out) in pairs.iter().zip(&mut *out) {
        for i in 0..2 {
            let low = vector::exp2_rough(V::load(&pair[0][i]).sub(most[i]));
            let high = vector::exp2_rough(V::load(&pair[1][i]).sub(most[i]));
            total[i] = total[i].add(low).add(high);
            low.pair_bf16(high, &mut out[i]);
        }
    }
    if let ([row], Some(out)) = (last, out.last_mut()) {
        for i in 0..2 {
            let low = vector::exp2_rough(V::load(&row[i]).sub(most[i]));
            total[i] = total[i].add(low);
            low.pair_bf16(V::splat(0.0), &mut out[i]);
        }
    }
    put_sums(total, sums);
}

#[inline(always)]
fn soften_floats<V: Vector, const N: usize>(scores: &[f32], panel: &mut [u32], sums: &mut Sums) {
    let rows = scores.as_chunks::<LANES>().0.as_chunks::<N>().0;
    let out = panel.as_chunks_mut::<LANES>().0.as_chunks_mut::<N>().0;
    let (most, mut total) = (greatest::<V, N>(rows), [V::splat(0.0); N]);
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
fn soften_narrow_body<V: Vector>(scores: &[f32], panel: &mut [u32], sums: &mut Sums) {
    soften_floats::<V, 1>(scores, panel, sums);
}

#[inline(always)]
fn soften_wide_body<V: Vector>(scores: &[f32], panel: &mut [u32], sums: &mut Sums) {
    soften_floats::<V, 2>(scores, panel, sums);
}

#[inline(always)]
fn put_sums<V: Vector, const N: usize>(total: [V; N], sums: &mut Sums) {
    let sums = sums.as_chunks_mut::<LANES>().0;
    for i in 0..N {
        total[i].store(&mut sums[i]);
    }
}
