//! Kernels for one row at a time: layer normalisation, conversion to the formats of operands, softmax,
//! dot products. The result of a row depends on nothing else.

use crate::isa::for_each_isa;
use crate::math::{LANES, fma, from_bf16, max_lanes, round, sum_lanes, to_bf16};
use crate::vector::{self, Simd, Vector, for_each_vector};

for_each_vector! {
    /// Layer normalisation of a row: `(x − mean) / √(variance + eps) · weight + bias` into `out`.
    ///
    /// Ba, Kiros & Hinton (2016); the variance is the biased one, as in PyTorch.
    ///
    /// # Panics
    /// Another slice is shorter than `x`.
    pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32])
        = layer_norm_body;
}

#[inline(always)]
fn layer_norm_body<S: Simd>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let n = x.len();
    let (weight, bias, out) = (&weight[..n], &bias[..n], &mut out[..n]);
    let mean = reduce(simd, x, 0.0, Vector::add) / n as f32;
    let middle = simd.splat(mean);
    let square = |sum: S::Vector, value: S::Vector| {
        let distance = value.sub(middle);
        distance.fma(distance, sum)
    };
    let scale = 1.0 / (reduce(simd, x, mean, square) / n as f32 + eps).sqrt();
    let norm = |x: S::Vector, weight: S::Vector, bias: S::Vector| {
        x.sub(middle).mul(simd.splat(scale)).fma(weight, bias)
    };
    let ((x, x_rest), (weight, weight_rest)) = (x.as_chunks(), weight.as_chunks());
    let ((bias, bias_rest), (out, out_rest)) = (bias.as_chunks(), out.as_chunks_mut());
    for (((x, weight), bias), out) in x.iter().zip(weight).zip(bias).zip(out) {
        norm(simd.load(x), simd.load(weight), simd.load(bias)).store(out);
    }
    let load = |rest| simd.load(&padded(rest, 0.0));
    let rest = norm(load(x_rest), load(weight_rest), load(bias_rest)).lanes();
    out_rest.iter_mut().zip(rest).for_each(|(out, value)| *out = value);
}

/// Independent accumulators, so that no addition waits for the previous one.
const ACCUMULATORS: usize = 4;

/// Folds a row lane by lane, starting with zero, and adds the lanes. The end of the row is padded with
/// `fill`, which must not change the sum. The order depends only on the length.
#[inline(always)]
fn reduce<S: Simd>(
    simd: S,
    x: &[f32],
    fill: f32,
    fold: impl Fn(S::Vector, S::Vector) -> S::Vector,
) -> f32 {
    let mut sums = [simd.splat(0.0); ACCUMULATORS];
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (groups, singles) = chunks.as_chunks::<ACCUMULATORS>();
    for group in groups {
        for (sum, chunk) in sums.iter_mut().zip(group) {
            *sum = fold(*sum, simd.load(chunk));
        }
    }
    for (sum, chunk) in sums.iter_mut().zip(singles) {
        *sum = fold(*sum, simd.load(chunk));
    }
    if !rest.is_empty() {
        sums[ACCUMULATORS - 1] = fold(sums[ACCUMULATORS - 1], simd.load(&padded(rest, fill)));
    }
    sum_lanes(sums[0].add(sums[1]).add(sums[2].add(sums[3])).lanes())
}

/// The quantisation of a row of 8-bit integers: `value = scale · (integer − zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct QuantParams {
    pub(crate) scale: f32,
    /// Between 0 and 255.
    pub(crate) zero_point: i32,
}

impl QuantParams {
    /// For rows that are not quantised.
    pub(crate) const NONE: Self = Self { scale: 1.0, zero_point: 0 };
}

for_each_vector! {
    /// The parameters that map the range of the row, zero included, to 0..=255; zero is exact.
    ///
    /// The scale of a row with NaN or infinity is NaN, and so is every product with the row. A row of
    /// subnormal numbers only counts as zeros.
    pub(crate) fn quant_params(x: &[f32]) -> QuantParams = quant_params_body;
}

#[inline(always)]
fn quant_params_body<S: Simd>(simd: S, x: &[f32]) -> QuantParams {
    let Some((low, high)) = range(simd, x) else {
        return QuantParams { scale: f32::NAN, zero_point: 0 };
    };
    // Divided before the subtraction, since the difference of two huge numbers overflows.
    let scale = (high / 255.0) - (low / 255.0);
    if scale < f32::MIN_POSITIVE {
        return QuantParams { scale: 0.0, zero_point: 0 };
    }
    QuantParams { scale, zero_point: round(-low / scale).clamp(0, 255) }
}

/// The lowest and the highest of zero and the numbers of a row; `None` if one is not finite.
#[inline(always)]
fn range<S: Simd>(simd: S, x: &[f32]) -> Option<(f32, f32)> {
    let zero = simd.splat(0.0);
    let mut found = [(zero, zero, zero); 2];
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (pairs, single) = chunks.as_chunks::<2>();
    for pair in pairs {
        for (found, chunk) in found.iter_mut().zip(pair) {
            widen(simd, found, simd.load(chunk));
        }
    }
    for chunk in single {
        widen(simd, &mut found[0], simd.load(chunk));
    }
    if !rest.is_empty() {
        widen(simd, &mut found[1], simd.load(&padded(rest, 0.0)));
    }
    let [first, second] = found;
    if sum_lanes(first.2.add(second.2).lanes()).is_nan() {
        return None;
    }
    let low = zero.sub(first.0.min(second.0)).lanes();
    Some((-max_lanes(low), max_lanes(first.1.max(second.1).lanes())))
}

/// Extends a range. Zero times NaN or infinity is NaN, and makes the sum `poison` NaN for good.
#[inline(always)]
fn widen<S: Simd>(
    simd: S,
    (low, high, poison): &mut (S::Vector, S::Vector, S::Vector),
    value: S::Vector,
) {
    *low = value.min(*low);
    *high = value.max(*high);
    *poison = value.fma(simd.splat(0.0), *poison);
}

/// The end of a row, padded with `fill`.
#[inline(always)]
fn padded(rest: &[f32], fill: f32) -> [f32; LANES] {
    let mut chunk = [fill; LANES];
    for (lane, &value) in chunk.iter_mut().zip(rest) {
        *lane = value;
    }
    chunk
}

for_each_isa! {
    /// Quantises a row to 8 bits; `out` has the length of the row.
    pub(crate) fn quantize(x: &[f32], params: QuantParams, out: &mut [u8]) = quantize_body;
}

#[inline(always)]
fn quantize_body<const FMA: bool>(x: &[f32], params: QuantParams, out: &mut [u8]) {
    let inverse = 1.0 / params.scale;
    if !inverse.is_finite() {
        out.fill(0);
        return;
    }
    let zero = params.zero_point as f32;
    for (integer, &value) in out.iter_mut().zip(x) {
        let scaled = value * inverse + zero;
        let scaled = if scaled < 0.0 { 0.0 } else { scaled };
        let scaled = if scaled > 255.0 { 255.0 } else { scaled };
        *integer = round(scaled) as u8;
    }
}

for_each_vector! {
    /// The largest magnitude in a row; NaN if a number is not finite.
    pub(crate) fn max_abs(x: &[f32]) -> f32 = max_abs_body;
}

#[inline(always)]
fn max_abs_body<S: Simd>(simd: S, x: &[f32]) -> f32 {
    range(simd, x).map_or(f32::NAN, |(low, high)| if -low > high { -low } else { high })
}

for_each_isa! {
    /// Rounds `x · inverse`, which is at most 127 in magnitude, to signed 8-bit integers.
    pub(crate) fn quantize_signed(x: &[f32], inverse: f32, out: &mut [i8]) = quantize_signed_body;
}

#[inline(always)]
fn quantize_signed_body<const FMA: bool>(x: &[f32], inverse: f32, out: &mut [i8]) {
    for (integer, &value) in out.iter_mut().zip(x) {
        *integer = round(value * inverse) as i8;
    }
}

for_each_isa! {
    /// Converts a row to bf16, two numbers per word, the first in the low half. An odd end is padded
    /// with 0.
    pub(crate) fn pair_bf16(x: &[f32], out: &mut [u32]) = pair_bf16_body;
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
    /// Interleaves two rows in bf16: word `i` has `low[i]` in the low half and `high[i]` in the high half.
    pub(crate) fn interleave_bf16(low: &[f32], high: &[f32], out: &mut [u32]) = interleave_bf16_body;
}

#[inline(always)]
fn interleave_bf16_body<const FMA: bool>(low: &[f32], high: &[f32], out: &mut [u32]) {
    for ((word, &a), &b) in out.iter_mut().zip(low).zip(high) {
        *word = to_bf16(a) | (to_bf16(b) << 16);
    }
}

for_each_vector! {
    /// Replaces a row with the numerators of its softmax, `exp(x − max)`, and returns their sum, the
    /// denominator. A NaN in the row makes the sum NaN.
    pub(crate) fn softmax_numerators(x: &mut [f32]) -> f32 = softmax_numerators_body;
}

#[inline(always)]
fn softmax_numerators_body<S: Simd>(simd: S, x: &mut [f32]) -> f32 {
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    let mut max = simd.load(&padded(rest, f32::MIN)).max(simd.splat(f32::MIN));
    for chunk in &*chunks {
        max = simd.load(chunk).max(max);
    }
    let max = simd.splat(max_lanes(max.lanes()));
    let mut sums = simd.splat(0.0);
    for chunk in chunks {
        let value = vector::exp(simd, simd.load(chunk).sub(max));
        sums = sums.add(value);
        value.store(chunk);
    }
    let last = vector::exp(simd, simd.load(&padded(rest, 0.0)).sub(max)).lanes();
    rest.iter_mut().zip(last).fold(sum_lanes(sums.lanes()), |sum, (x, value)| {
        *x = value;
        sum + value
    })
}

for_each_vector! {
    /// The dot product of two rows of the same length.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body;
}

#[inline(always)]
fn dot_body<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = simd.splat(0.0);
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks(), b.as_chunks());
    for (a, b) in a.iter().zip(b) {
        sum = simd.load(a).fma(simd.load(b), sum);
    }
    if !a_rest.is_empty() {
        sum = simd.load(&padded(a_rest, 0.0)).fma(simd.load(&padded(b_rest, 0.0)), sum);
    }
    sum_lanes(sum.lanes())
}

/// A number of a KV table.
trait TableElement: Copy {
    /// Its value.
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

/// Columns of a table whose weighted sums are computed together, in registers: four vectors of
/// accumulators hide the latency of a multiplication.
pub(crate) const BLOCK: usize = 64;

/// `Σ weights[n] · table[n]` over rows of `N` numbers; `out` has `N` numbers.
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
    /// `out` has another length.
    pub(crate) fn weighted_sum_f32(weights: &[f32], table: &[f32], out: &mut [f32]) = weighted_sum_f32_body;
}
for_each_isa! {
    /// As [`weighted_sum_f32`], for a table of bf16.
    pub(crate) fn weighted_sum_bf16(weights: &[f32], table: &[u16], out: &mut [f32]) = weighted_sum_bf16_body;
}
for_each_isa! {
    /// As [`weighted_sum_f32`], for a table of 8-bit integers.
    pub(crate) fn weighted_sum_i8(weights: &[f32], table: &[i8], out: &mut [f32]) = weighted_sum_i8_body;
}
