//! Kernels over one row at a time: layer norm, conversion to the operand's formats, softmax, dot
//! products. A row's result depends on nothing but the row.

use crate::kernels::math::{LANES, exp, fma, from_bf16, max_lanes, round, sum_lanes, to_bf16};
use crate::kernels::tier::for_each_isa;

for_each_isa! {
    /// `(x − mean) / √(variance + eps) · weight + bias` of a row into `out`.
    ///
    /// Ba, Kiros & Hinton (2016); the variance is that of the whole row, as in PyTorch.
    pub(crate) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32])
        = layer_norm_body;
}

#[inline(always)]
fn layer_norm_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let n = x.len();
    let (weight, bias, out) = (&weight[..n], &bias[..n], &mut out[..n]);
    let mean = reduce(x, |sum, value| sum + value) / n as f32;
    let variance = reduce(x, |sum, value| fma::<FMA>(value - mean, value - mean, sum)) / n as f32;
    let scale = 1.0 / (variance + eps).sqrt();
    for i in 0..n {
        out[i] = fma::<FMA>((x[i] - mean) * scale, weight[i], bias[i]);
    }
}

/// Folds a row from zero, lane by lane, and adds the lanes; the order depends on the length alone.
#[inline(always)]
fn reduce(x: &[f32], fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = fold(*lane, value);
        }
    }
    // A lane chosen at run time would keep all of them in memory, so the rest has its own sum.
    sum_lanes(lanes) + rest.iter().fold(0.0, |sum, &value| fold(sum, value))
}

/// How a row of 8-bit numbers is read: `value = scale · (number − zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Affine {
    pub(crate) scale: f32,
    pub(crate) zero: i32,
}

for_each_isa! {
    /// The row's own affine map onto 0..=255, zero included exactly.
    ///
    /// The scale of a row that holds NaN or infinity is NaN, so that whatever is computed with it
    /// is NaN too; a row of nothing but denormals counts as zeros.
    pub(crate) fn affine(x: &[f32]) -> Affine = affine_body;
}

#[inline(always)]
fn affine_body<const FMA: bool>(x: &[f32]) -> Affine {
    let (low, high, poison) = range(x);
    let (low, high) = (-max_lanes(low.map(|low| -low)), max_lanes(high));
    if sum_lanes(poison).is_nan() {
        return Affine { scale: f32::NAN, zero: 0 };
    }
    // In halves, for the range of two huge numbers may be none.
    let scale = (high / 255.0) - (low / 255.0);
    if scale < f32::MIN_POSITIVE {
        return Affine { scale: 0.0, zero: 0 };
    }
    Affine { scale, zero: round(-low / scale).clamp(0, 255) }
}

/// The range of a row around zero, lane by lane: lowest, highest, and NaN where one is not finite.
#[inline(always)]
fn range(x: &[f32]) -> ([f32; LANES], [f32; LANES], [f32; LANES]) {
    let (mut low, mut high, mut poison) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        widen(chunk, &mut low, &mut high, &mut poison);
    }
    if !rest.is_empty() {
        widen(&padded(rest), &mut low, &mut high, &mut poison);
    }
    (low, high, poison)
}

/// Takes numbers into the range from `low` to `high`; `poison` becomes NaN if one is not finite.
#[inline(always)]
fn widen(
    chunk: &[f32; LANES],
    low: &mut [f32; LANES],
    high: &mut [f32; LANES],
    poison: &mut [f32; LANES],
) {
    for lane in 0..LANES {
        let value = chunk[lane];
        low[lane] = if value < low[lane] { value } else { low[lane] };
        high[lane] = if value > high[lane] { value } else { high[lane] };
        poison[lane] += value * 0.0;
    }
}

/// The end of a row, filled up with zeros.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut chunk = [0.0; LANES];
    for (place, &value) in chunk.iter_mut().zip(rest) {
        *place = value;
    }
    chunk
}

for_each_isa! {
    /// The row in 8 bits under its map; `out` is as long as the row.
    pub(crate) fn quantize(x: &[f32], map: Affine, out: &mut [u8]) = quantize_body;
}

#[inline(always)]
fn quantize_body<const FMA: bool>(x: &[f32], map: Affine, out: &mut [u8]) {
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

for_each_isa! {
    /// The largest size of a number in the row; NaN if one is not finite.
    pub(crate) fn largest(x: &[f32]) -> f32 = largest_body;
}

#[inline(always)]
fn largest_body<const FMA: bool>(x: &[f32]) -> f32 {
    let (low, high, poison) = range(x);
    let mut most = [0f32; LANES];
    for lane in 0..LANES {
        most[lane] = if -low[lane] > high[lane] { -low[lane] } else { high[lane] };
    }
    max_lanes(most) + sum_lanes(poison)
}

for_each_isa! {
    /// The row in signed 8 bits: the nearest integers of `x · inverse`, which are at most 127 in size.
    pub(crate) fn quantize_signed(x: &[f32], inverse: f32, out: &mut [i8]) = quantize_signed_body;
}

#[inline(always)]
fn quantize_signed_body<const FMA: bool>(x: &[f32], inverse: f32, out: &mut [i8]) {
    for (number, &value) in out.iter_mut().zip(x) {
        *number = round(value * inverse) as i8;
    }
}

for_each_isa! {
    /// The row in bf16, two numbers a word, the first in the low half; an odd end is padded with 0.
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
    /// Two rows in bf16, woven: word `i` holds `low[i]` and `high[i]`.
    pub(crate) fn weave_bf16(low: &[f32], high: &[f32], out: &mut [u32]) = weave_bf16_body;
}

#[inline(always)]
fn weave_bf16_body<const FMA: bool>(low: &[f32], high: &[f32], out: &mut [u32]) {
    for ((word, &a), &b) in out.iter_mut().zip(low).zip(high) {
        *word = to_bf16(a) | (to_bf16(b) << 16);
    }
}

for_each_isa! {
    /// `eˣ` less the row's maximum, in place; gives back the sum, by which the caller divides.
    ///
    /// A NaN in the row makes the sum NaN.
    pub(crate) fn exp_row(x: &mut [f32]) -> f32 = exp_row_body;
}

#[inline(always)]
fn exp_row_body<const FMA: bool>(x: &mut [f32]) -> f32 {
    let mut lanes = [f32::MIN; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    let most = rest.iter().fold(max_lanes(lanes), |a, &b| if b > a { b } else { a });
    let mut sums = [0.0; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *value = exp::<FMA>(*value - most);
            *sum += *value;
        }
    }
    let mut sum = sum_lanes(sums);
    for value in rest {
        *value = exp::<FMA>(*value - most);
        sum += *value;
    }
    sum
}

for_each_isa! {
    /// The dot product of two rows of one length.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body;
}

#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] = fma::<FMA>(a[lane], b[lane], lanes[lane]);
        }
    }
    a_rest.iter().zip(b_rest).fold(sum_lanes(lanes), |sum, (&a, &b)| fma::<FMA>(a, b, sum))
}

/// A number of a key/value table.
pub(crate) trait Stored: Copy {
    fn read(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    fn read(self) -> f32 {
        self
    }
}

/// The bits of a bf16.
impl Stored for u16 {
    #[inline(always)]
    fn read(self) -> f32 {
        from_bf16(self)
    }
}

impl Stored for i8 {
    #[inline(always)]
    fn read(self) -> f32 {
        f32::from(self)
    }
}

/// Columns of a table that are summed at a time, in registers.
pub(crate) const BLOCK: usize = 64;

/// Four vectors of partial sums keep a multiplier busy while the one before is not done.
#[inline(always)]
fn weighted_sum_body<T: Stored, const FMA: bool>(
    weights: &[f32],
    table: &[T],
    out: &mut [f32; BLOCK],
) {
    let mut sums = [0.0; BLOCK];
    for (&weight, row) in weights.iter().zip(table.as_chunks::<BLOCK>().0) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum = fma::<FMA>(weight, value.read(), *sum);
        }
    }
    *out = sums;
}

#[inline(always)]
fn weighted_f32_body<const FMA: bool>(weights: &[f32], table: &[f32], out: &mut [f32; BLOCK]) {
    weighted_sum_body::<f32, FMA>(weights, table, out);
}

#[inline(always)]
fn weighted_bf16_body<const FMA: bool>(weights: &[f32], table: &[u16], out: &mut [f32; BLOCK]) {
    weighted_sum_body::<u16, FMA>(weights, table, out);
}

#[inline(always)]
fn weighted_i8_body<const FMA: bool>(weights: &[f32], table: &[i8], out: &mut [f32; BLOCK]) {
    weighted_sum_body::<i8, FMA>(weights, table, out);
}

for_each_isa! {
    /// `Σ weights[n] · table[n]` over rows of [`BLOCK`] numbers.
    pub(crate) fn weighted_f32(weights: &[f32], table: &[f32], out: &mut [f32; BLOCK]) = weighted_f32_body;
}
for_each_isa! {
    /// As [`weighted_f32`] over bf16 numbers.
    pub(crate) fn weighted_bf16(weights: &[f32], table: &[u16], out: &mut [f32; BLOCK]) = weighted_bf16_body;
}
for_each_isa! {
    /// As [`weighted_f32`] over 8-bit numbers.
    pub(crate) fn weighted_i8(weights: &[f32], table: &[i8], out: &mut [f32; BLOCK]) = weighted_i8_body;
}
