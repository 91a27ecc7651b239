//! Kernels over one row at a time: layer norm, conversion to the operand's formats, softmax, dot
//! products. A row's result depends on nothing but the row.

use crate::isa::for_each_isa;
use crate::math::{LANES, fma, from_bf16, max_lanes, round, sum_lanes, to_bf16};
use crate::vector::{self, Vector, for_each_vector};

for_each_vector! {
    /// `(x − mean) / √(variance + eps) · weight + bias` of a row into `out`.
    ///
    /// Ba, Kiros & Hinton (2016); the variance is that of the whole row, as in PyTorch.
    pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32])
        = layer_norm_body;
}

#[inline(always)]
fn layer_norm_body<V: Vector>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len();
    let (weight, bias, out) = (&weight[..n], &bias[..n], &mut out[..n]);
    let mean = reduce::<V>(x, 0.0, V::add) / n as f32;
    let middle = V::splat(mean);
    let square = |sum: V, value: V| {
        let distance = value.sub(middle);
        distance.fma(distance, sum)
    };
    let scale = 1.0 / (reduce::<V>(x, mean, square) / n as f32 + eps).sqrt();
    let norm = |x: V, weight: V, bias: V| x.sub(middle).mul(V::splat(scale)).fma(weight, bias);
    let ((x, x_rest), (weight, weight_rest)) = (x.as_chunks(), weight.as_chunks());
    let ((bias, bias_rest), (out, out_rest)) = (bias.as_chunks(), out.as_chunks_mut());
    for (((x, weight), bias), out) in x.iter().zip(weight).zip(bias).zip(out) {
        norm(V::load(x), V::load(weight), V::load(bias)).store(out);
    }
    let load = |rest| V::load(&padded(rest, 0.0));
    let rest = norm(load(x_rest), load(weight_rest), load(bias_rest)).lanes();
    out_rest.iter_mut().zip(rest).for_each(|(out, value)| *out = value);
}

/// Vectors that are folded side by side, so that none waits for the one before.
const ABREAST: usize = 4;

/// Folds a row from zero, lane by lane, and adds the lanes; its end is filled up with `fill`, which
/// must not change the sum. The order depends on the length alone.
#[inline(always)]
fn reduce<V: Vector>(x: &[f32], fill: f32, fold: impl Fn(V, V) -> V) -> f32 {
    let mut sums = [V::splat(0.0); ABREAST];
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (groups, singles) = chunks.as_chunks::<ABREAST>();
    for group in groups {
        for (sum, chunk) in sums.iter_mut().zip(group) {
            *sum = fold(*sum, V::load(chunk));
        }
    }
    for (sum, chunk) in sums.iter_mut().zip(singles) {
        *sum = fold(*sum, V::load(chunk));
    }
    if !rest.is_empty() {
        sums[ABREAST - 1] = fold(sums[ABREAST - 1], V::load(&padded(rest, fill)));
    }
    sum_lanes(sums[0].add(sums[1]).add(sums[2].add(sums[3])).lanes())
}

/// How a row of 8-bit numbers is read: `value = scale · (number − zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantParams {
    pub scale: f32,
    pub zero: i32,
}

for_each_vector! {
    /// The row's own affine map onto 0..=255, zero included exactly.
    ///
    /// The scale of a row that holds NaN or infinity is NaN, so that whatever is computed with it
    /// is NaN too; a row of nothing but denormals counts as zeros.
    pub fn quant_params(x: &[f32]) -> QuantParams = quant_params_body;
}

#[inline(always)]
fn quant_params_body<V: Vector>(x: &[f32]) -> QuantParams {
    let Some((low, high)) = range::<V>(x) else {
        return QuantParams { scale: f32::NAN, zero: 0 };
    };
    // In halves, for the range of two huge numbers may be none.
    let scale = (high / 255.0) - (low / 255.0);
    if scale < f32::MIN_POSITIVE {
        return QuantParams { scale: 0.0, zero: 0 };
    }
    QuantParams { scale, zero: round(-low / scale).clamp(0, 255) }
}

/// The lowest and the highest number of a row and zero; none if one is not finite.
#[inline(always)]
fn range<V: Vector>(x: &[f32]) -> Option<(f32, f32)> {
    let zero = V::splat(0.0);
    let mut found = [(zero, zero, zero); 2];
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (pairs, single) = chunks.as_chunks::<2>();
    for pair in pairs {
        for (found, chunk) in found.iter_mut().zip(pair) {
            widen(found, V::load(chunk));
        }
    }
    for chunk in single {
        widen(&mut found[0], V::load(chunk));
    }
    if !rest.is_empty() {
        widen(&mut found[1], V::load(&padded(rest, 0.0)));
    }
    let [first, second] = found;
    if sum_lanes(first.2.add(second.2).lanes()).is_nan() {
        return None;
    }
    let low = zero.sub(first.0.min(second.0)).lanes();
    Some((-max_lanes(low), max_lanes(first.1.max(second.1).lanes())))
}

/// Takes numbers into a range. What is not finite is NaN times zero, and stays so in the third sum.
#[inline(always)]
fn widen<V: Vector>((low, high, poison): &mut (V, V, V), value: V) {
    *low = value.min(*low);
    *high = value.max(*high);
    *poison = value.fma(V::splat(0.0), *poison);
}

/// The end of a row, filled up.
#[inline(always)]
fn padded(rest: &[f32], fill: f32) -> [f32; LANES] {
    let mut chunk = [fill; LANES];
    for (place, &value) in chunk.iter_mut().zip(rest) {
        *place = value;
    }
    chunk
}

for_each_isa! {
    /// The row in 8 bits under its map; `out` is as long as the row.
    pub fn quantize(x: &[f32], map: QuantParams, out: &mut [u8]) = quantize_body;
}

#[inline(always)]
fn quantize_body<const FMA: bool>(x: &[f32], map: QuantParams, out: &mut [u8]) {
    let inverse = 1.0 / map.scale;
    if !inverse.is_finite() {
        out.fill(0);
        return;
    }
    let zero = map.zero as f32;
    for (number, &value) in out.iter_mut().zip(x) {
        let scaled = value * inverse + zero;
        let scaled = if scaled < 0.0 { 0.0 } else { scaled };
        let scaled = if scaled > 255.0 { 255.0 } else { scaled };
        *number = round(scaled) as u8;
    }
}

for_each_vector! {
    /// The largest size of a number in the row; NaN if one is not finite.
    pub fn max_abs(x: &[f32]) -> f32 = max_abs_body;
}

#[inline(always)]
fn max_abs_body<V: Vector>(x: &[f32]) -> f32 {
    range::<V>(x).map_or(f32::NAN, |(low, high)| if -low > high { -low } else { high })
}

for_each_isa! {
    /// The row in signed 8 bits: the nearest integers of `x · inverse`, which are at most 127 in size.
    pub fn quantize_signed(x: &[f32], inverse: f32, out: &mut [i8]) = quantize_signed_body;
}

#[inline(always)]
fn quantize_signed_body<const FMA: bool>(x: &[f32], inverse: f32, out: &mut [i8]) {
    for (number, &value) in out.iter_mut().zip(x) {
        *number = round(value * inverse) as i8;
    }
}

for_each_isa! {
    /// The row in bf16, two numbers a word, the first in the low half; an odd end is padded with 0.
    pub fn pair_bf16(x: &[f32], out: &mut [u32]) = pair_bf16_body;
}

#[inline(always)]
fn pair_bf16_body<const FMA: bool>(x: &[f32], out: &mut [u32]) {
    let (pairs, rest) = x.as_chunks::<2>();
    for (word, pair) in out.iter_mut().zip(pairs) {
        *word = to_bf16(pair[0]) | (to_bf16(pair[1]) << 16);
    }
    if let [last] = rest {
        out[pairs.len()] = to_bf16(*last);
    }
}

for_each_isa! {
    /// Two rows in bf16, woven: word `i` holds `low[i]` and `high[i]`.
    pub fn interleave_bf16(low: &[f32], high: &[f32], out: &mut [u32]) = interleave_bf16_body;
}

#[inline(always)]
fn interleave_bf16_body<const FMA: bool>(low: &[f32], high: &[f32], out: &mut [u32]) {
    for ((word, &a), &b) in out.iter_mut().zip(low).zip(high) {
        *word = to_bf16(a) | (to_bf16(b) << 16);
    }
}

for_each_vector! {
    /// `eˣ` less the row's maximum, in place; gives back the sum, by which the caller divides.
    ///
    /// A NaN in the row makes the sum NaN.
    pub fn softmax_numerators(x: &mut [f32]) -> f32 = softmax_numerators_body;
}

#[inline(always)]
fn softmax_numerators_body<V: Vector>(x: &mut [f32]) -> f32 {
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    let mut most = V::load(&padded(rest, f32::MIN)).max(V::splat(f32::MIN));
    for chunk in &*chunks {
        most = V::load(chunk).max(most);
    }
    let most = V::splat(max_lanes(most.lanes()));
    let mut sums = V::splat(0.0);
    for chunk in chunks {
        let value = vector::exp(V::load(chunk).sub(most));
        sums = sums.add(value);
        value.store(chunk);
    }
    let last = vector::exp(V::load(&padded(rest, 0.0)).sub(most)).lanes();
    rest.iter_mut().zip(last).fold(sum_lanes(sums.lanes()), |sum, (place, value)| {
        *place = value;
        sum + value
    })
}

for_each_vector! {
    /// The dot product of two rows of one length.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body;
}

#[inline(always)]
fn dot_body<V: Vector>(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = V::splat(0.0);
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks(), b.as_chunks());
    for (a, b) in a.iter().zip(b) {
        sum = V::load(a).fma(V::load(b), sum);
    }
    if !a_rest.is_empty() {
        sum = V::load(&padded(a_rest, 0.0)).fma(V::load(&padded(b_rest, 0.0)), sum);
    }
    sum_lanes(sum.lanes())
}

/// A number of a key/value table.
pub trait TableElement: Copy {
    fn read(self) -> f32;
}

impl TableElement for f32 {
    #[inline(always)]
    fn read(self) -> f32 {
        self
    }
}

/// The bits of a bf16.
impl TableElement for u16 {
    #[inline(always)]
    fn read(self) -> f32 {
        from_bf16(self)
    }
}

impl TableElement for i8 {
    #[inline(always)]
    fn read(self) -> f32 {
        f32::from(self)
    }
}

/// Columns of a table that are summed at a time, in registers: four vectors of partial sums keep a
/// multiplier busy while the one before is not done.
pub const BLOCK: usize = 64;

/// `Σ weights[n] · table[n]` over rows of `N` numbers, as many as `out` has.
#[inline(always)]
fn weighted_sum_of<T: TableElement, const FMA: bool, const N: usize>(
    weights: &[f32],
    table: &[T],
    out: &mut [f32],
) {
    let mut sums = [0.0; N];
    for (&weight, row) in weights.iter().zip(table.as_chunks::<N>().0) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum = fma::<FMA>(weight, value.read(), *sum);
        }
    }
    out.copy_from_slice(&sums);
}

#[inline(always)]
fn weighted_sum_body<T: TableElement, const FMA: bool>(
    weights: &[f32],
    table: &[T],
    out: &mut [f32],
) {
    if out.len() == BLOCK {
        weighted_sum_of::<T, FMA, BLOCK>(weights, table, out);
    } else {
        weighted_sum_of::<T, FMA, LANES>(weights, table, out);
    }
}

#[inline(always)]
fn weighted_sum_f32_body<const FMA: bool>(weights: &[f32], table: &[f32], out: &mut [f32]) {
    weighted_sum_body::<f32, FMA>(weights, table, out);
}

#[inline(always)]
fn weighted_sum_bf16_body<const FMA: bool>(weights: &[f32], table: &[u16], out: &mut [f32]) {
    weighted_sum_body::<u16, FMA>(weights, table, out);
}

#[inline(always)]
fn weighted_sum_i8_body<const FMA: bool>(weights: &[f32], table: &[i8], out: &mut [f32]) {
    weighted_sum_body::<i8, FMA>(weights, table, out);
}

for_each_isa! {
    /// `Σ weights[n] · table[n]` over rows of as many numbers as `out` has: [`BLOCK`] or [`LANES`].
    ///
    /// # Panics
    /// It has another number of them.
    pub fn weighted_sum_f32(weights: &[f32], table: &[f32], out: &mut [f32]) = weighted_sum_f32_body;
}
for_each_isa! {
    /// As [`weighted_sum_f32`] over bf16 numbers.
    pub fn weighted_sum_bf16(weights: &[f32], table: &[u16], out: &mut [f32]) = weighted_sum_bf16_body;
}
for_each_isa! {
    /// As [`weighted_sum_f32`] over 8-bit numbers.
    pub fn weighted_sum_i8(weights: &[f32], table: &[i8], out: &mut [f32]) = weighted_sum_i8_body;
}
