//! The same operations, composed of candle's own. They run on every device that candle knows, more
//! slowly, and replace an operation of this crate that a device does not compute correctly. What they
//! return is what the operations return, but for rounding: candle rounds the results in between as well.

use candle_core::{D, DType, Result, Tensor, bail};
use candle_nn::ops::softmax_last_dim;

use crate::product::Arrangement;

/// The most scores that attention computes at once: 512 MB in f16.
const MAX_SCORES: usize = 1 << 28;

/// Pieces that a row is cut into to find its greatest numbers; a power of two. The greatest `n` numbers
/// lie in the `n` pieces with the greatest maxima.
const PIECES: usize = 128;

/// Numbers that candle's CUDA kernel sorts at once: it keeps a four-byte index of each in a block's 48 kB
/// of shared memory.
const MAX_SORTED: usize = 8192;

/// Fills a row behind its end: finite, and less than any logit.
const PADDING: f32 = f32::MIN;

/// A matrix product in the type of its operands; candle has none of bf16 on a CPU.
fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dtype() == DType::BF16 && a.device().is_cpu() {
        let full = a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?;
        return full.to_dtype(DType::BF16);
    }
    a.matmul(b)
}

pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    matmul(x, &weight.t()?)?.broadcast_add(bias)
}

pub(crate) fn attention(qkv: &Tensor, scale: f32) -> Result<Tensor> {
    let (images, tokens, 3, heads, width) = qkv.dims5()? else {
        bail!("expected [images, tokens, 3, heads, width], not {:?}", qkv.dims());
    };
    let at_once = (MAX_SCORES / (heads * tokens * tokens).max(1)).max(1);
    let mut contexts = Vec::new();
    for first in (0..images).step_by(at_once) {
        let count = at_once.min(images - first);
        let parts = qkv.narrow(0, first, count)?.permute([2, 0, 3, 1, 4])?.contiguous()?;
        // Scaled before the product, whose sums are then small enough for f16.
        let q = (parts.get(0)? * f64::from(scale))?;
        let scores = matmul(&q, &parts.get(1)?.t()?)?;
        let context = matmul(&softmax_last_dim(&scores)?, &parts.get(2)?)?;
        contexts.push(context.transpose(1, 2)?.reshape((count * tokens, heads * width))?);
    }
    Tensor::cat(&contexts, 0)
}

pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, eps)
}

pub(crate) fn product(
    a: &Tensor,
    b: &Tensor,
    result: DType,
    arrangement: Arrangement,
) -> Result<Tensor> {
    // candle multiplies by a matrix whose columns are in one piece, but not by every view.
    let b = if b.transpose(1, 2)?.is_contiguous() { b.clone() } else { b.contiguous()? };
    let c = matmul(&a.contiguous()?, &b)?.to_dtype(result)?;
    match arrangement {
        Arrangement::BatchFirst => Ok(c),
        Arrangement::BatchInside => c.transpose(0, 1)?.contiguous(),
    }
}

pub(crate) fn softmax(scores: &Tensor, dtype: DType) -> Result<Tensor> {
    softmax_last_dim(&scores.contiguous()?)?.to_dtype(dtype)
}

pub(crate) fn step_store(cache: &Tensor, qkv: &Tensor, positions: &Tensor) -> Result<()> {
    let (rows, heads, 2, capacity, width) = cache.dims5()? else {
        bail!("expected [rows, heads, 2, capacity, width], not {:?}", cache.dims());
    };
    // candle writes nothing where the index is the greatest number.
    let nowhere = Tensor::full(u32::MAX, 1, cache.device())?.broadcast_as(rows)?;
    let places = inside(positions, capacity)?.where_cond(positions, &nowhere)?;
    let places = places.reshape((rows, 1, 1, 1, 1))?;
    let places = places.broadcast_as((rows, heads, 2, 1, width))?.contiguous()?;
    cache.scatter_set(&places, &qkv.narrow(2, 1, 2)?.contiguous()?.unsqueeze(3)?, 3)
}

pub(crate) fn step_attend(cache: &Tensor, qkv: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (rows, heads, 2, capacity, width) = cache.dims5()? else {
        bail!("expected [rows, heads, 2, capacity, width], not {:?}", cache.dims());
    };
    let device = cache.device();
    let part = |n| cache.narrow(2, n, 1)?.squeeze(2);
    let scores = matmul(&qkv.narrow(2, 0, 1)?, &part(0)?.t()?)?;
    // A row without a token looks at the first place, so that its scores have a softmax.
    let inside = inside(positions, capacity)?;
    let last = inside.where_cond(positions, &positions.zeros_like()?)?;
    let places = Tensor::arange(0, capacity as u32, device)?.unsqueeze(0)?;
    let seen = places.broadcast_le(&last.unsqueeze(1)?)?.reshape((rows, 1, 1, capacity))?;
    let hidden = Tensor::full(f32::NEG_INFINITY, (1, 1, 1, 1), device)?.to_dtype(scores.dtype())?;
    let scores = seen
        .broadcast_as(scores.shape())?
        .where_cond(&scores, &hidden.broadcast_as(scores.shape())?)?;
    let context = matmul(&softmax_last_dim(&scores)?, &part(1)?)?.reshape((rows, heads * width))?;
    let inside = inside.unsqueeze(1)?.broadcast_as(context.shape())?;
    inside.where_cond(&context, &context.zeros_like()?)
}

/// Which of the positions are below the capacity.
fn inside(positions: &Tensor, capacity: usize) -> Result<Tensor> {
    positions.lt(capacity as u32)
}

/// As [`best`](crate::best), but of equal numbers any may come first.
pub(crate) fn best(x: &Tensor, count: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    // candle's sort of a length that is not a power of two fills the rest with invalid indices.
    let length = width.next_power_of_two().max(PIECES);
    let (piece, kept) = (length / PIECES, count.next_power_of_two());
    if kept > PIECES || kept * piece > MAX_SORTED {
        return crate::best(&x.to_device(&candle_core::Device::Cpu)?, count)?.to_device(x.device());
    }
    let padding = Tensor::full(PADDING, (1, 1), x.device())?;
    let padded = match length - width {
        0 => x.clone(),
        more => Tensor::cat(&[x, &padding.broadcast_as((rows, more))?.contiguous()?], 1)?,
    };
    // NaN has no order, and a sort over it is undefined.
    let padding = padding.broadcast_as((rows, length))?;
    let ordered = padded.eq(&padded)?.where_cond(&padded, &padding)?;
    let ordered = ordered.reshape((rows, PIECES, piece))?;

    let first = |sorted: Tensor, count| sorted.narrow(1, 0, count)?.contiguous();
    let pieces = first(ordered.max(2)?.arg_sort_last_dim(false)?, kept)?;
    let members = pieces.unsqueeze(2)?.broadcast_as((rows, kept, piece))?.contiguous()?;
    let members = ordered.gather(&members, 1)?.reshape((rows, kept * piece))?;
    let indices = first(members.arg_sort_last_dim(false)?, count)?;
    let values = members.gather(&indices, 1)?;

    // An index among the members is one of a kept piece, and one inside it. f32 represents both.
    let indices = indices.to_dtype(DType::F32)?;
    let nth = (&indices / piece as f64)?.floor()?;
    let within = (indices - (&nth * piece as f64)?)?;
    let pieces = pieces.gather(&nth.to_dtype(DType::U32)?, 1)?.to_dtype(DType::F32)?;
    let indices = ((pieces * piece as f64)? + within)?;

    let sum = x.broadcast_sub(&values.narrow(1, 0, 1)?)?.exp()?.sum_keepdim(D::Minus1)?;
    // 0 · x is 0, or NaN if x is not finite.
    let mark = (x * 0.0)?.sum_keepdim(D::Minus1)?;
    Tensor::cat(&[&indices, &values, &sum, &mark], 1)
}
