//! The few operations that BLIP is made of. Everything that costs time goes through here, so that
//! a faster implementation of one of them serves both towers.
//!
//! Activations are row-major `[rows, width]` matrices without a batch dimension.

use std::cell::Cell;

use candle_core::quantized::QMatMul;
use candle_core::{self as candle, DType, Device, Module, Tensor};

use crate::config::Activation;
use crate::weights::Weights;
use cutline_error::Result;

/// Reads layers from a checkpoint and counts their parameters.
pub(crate) struct Loader<'a> {
    weights: &'a Weights,
    dtype: DType,
    device: &'a Device,
    parameters: Cell<u64>,
    quantized: Cell<Option<&'static str>>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(weights: &'a Weights, dtype: DType, device: &'a Device) -> Self {
        Self { weights, dtype, device, parameters: Cell::new(0), quantized: Cell::new(None) }
    }

    /// Reads f32 on the CPU.
    pub(crate) fn in_f32(weights: &'a Weights) -> Self {
        Self::new(weights, DType::F32, &Device::Cpu)
    }

    /// Parameters read so far.
    pub(crate) fn parameters(&self) -> u64 {
        self.parameters.get()
    }

    /// The name of the quantised format, if a layer has one.
    pub(crate) fn quantization(&self) -> Option<&'static str> {
        self.quantized.get()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.weights.tensor(name, shape, self.dtype, self.device)?;
        self.count(shape);
        Ok(tensor)
    }

    /// [`tensor`](Self::tensor) as plain numbers, row after row.
    pub(crate) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensor(name, shape)?;
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).map_err(super::arithmetic)
    }

    /// The linear layer `{prefix}.weight`, `{prefix}.bias`.
    pub(crate) fn linear(&self, prefix: &str, from: usize, to: usize) -> Result<Linear> {
        let bias = self.tensor(&format!("{prefix}.bias"), &[to])?;
        self.linear_with_bias(&format!("{prefix}.weight"), bias, from, to)
    }

    /// A linear layer whose bias is already there.
    pub(crate) fn linear_with_bias(
        &self,
        weight: &str,
        bias: Tensor,
        from: usize,
        to: usize,
    ) -> Result<Linear> {
        let shape = [to, from];
        if let Some(quantized) = self.weights.quantized(weight, &shape, self.device)? {
            self.count(&shape);
            self.quantized.set(Some(quantization_name(quantized.dtype())));
            let weight = QMatMul::from_arc(quantized).map_err(super::arithmetic)?;
            return Ok(Linear::Quantized { weight, bias });
        }
        Ok(Linear::new(self.tensor(weight, &shape)?, bias))
    }

    /// A linear layer over the matrix `shared`, called `weight` in the file, whose parameters are
    /// counted already.
    pub(crate) fn tied_linear(
        &self,
        weight: &str,
        shared: &Tensor,
        bias: Tensor,
    ) -> Result<Linear> {
        if let Some(quantized) = self.weights.quantized(weight, shared.dims(), self.device)? {
            let weight = QMatMul::from_arc(quantized).map_err(super::arithmetic)?;
            return Ok(Linear::Quantized { weight, bias });
        }
        Ok(Linear::new(shared.clone(), bias))
    }

    /// Whether the tensor called `name` holds the same values as `other`.
    pub(crate) fn same(&self, other: &Tensor, name: &str, shape: &[usize]) -> Result<bool> {
        let tensor = self.weights.tensor(name, shape, self.dtype, self.device)?;
        let equal = |a: &Tensor, b: &Tensor| {
            a.ne(b)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>().map(|n| n == 0.0)
        };
        equal(&tensor, other).map_err(super::arithmetic)
    }

    /// The layer norm `{prefix}.weight`, `{prefix}.bias`.
    pub(crate) fn layer_norm(&self, prefix: &str, width: usize, eps: f64) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: self.tensor(&format!("{prefix}.weight"), &[width])?,
            bias: self.tensor(&format!("{prefix}.bias"), &[width])?,
            eps: eps as f32,
        })
    }

    fn count(&self, shape: &[usize]) {
        let elements: usize = shape.iter().product();
        self.parameters.set(self.parameters.get() + elements as u64);
    }
}

fn quantization_name(dtype: candle_core::quantized::GgmlDType) -> &'static str {
    use candle_core::quantized::GgmlDType as G;
    match dtype {
        G::F32 => "f32",
        G::F16 => "f16",
        G::BF16 => "bf16",
        G::Q4_0 => "q4_0",
        G::Q4_1 => "q4_1",
        G::Q5_0 => "q5_0",
        G::Q5_1 => "q5_1",
        G::Q8_0 => "q8_0",
        G::Q8_1 => "q8_1",
        G::Q2K => "q2k",
        G::Q3K => "q3k",
        G::Q4K => "q4k",
        G::Q5K => "q5k",
        G::Q6K => "q6k",
        G::Q8K => "q8k",
    }
}

/// `y = x Wᵀ + b`. Weights are stored `[out, in]`, as in the checkpoint; the transposition is a
/// view, never a copy.
#[derive(Debug, Clone)]
pub(crate) enum Linear {
    /// Weights in f32.
    Full { weight: Tensor, bias: Tensor },
    /// Weights in f16 or bf16; an f32 input is converted to it and the result back.
    Half { weight: Tensor, bias: Tensor },
    /// Weights in one of GGUF's block formats; the arithmetic is candle's.
    Quantized { weight: QMatMul, bias: Tensor },
}

impl Linear {
    /// From a weight `[out, in]` and a bias `[out]` of the same dtype.
    pub(crate) fn new(weight: Tensor, bias: Tensor) -> Self {
        match weight.dtype() {
            DType::F16 | DType::BF16 => Self::Half { weight, bias },
            _ => Self::Full { weight, bias },
        }
    }

    /// The same layer with its numbers in `dtype`; quantised ones stay as they are.
    pub(crate) fn cast(self, dtype: DType) -> candle::Result<Self> {
        Ok(match self {
            Self::Full { weight, bias } | Self::Half { weight, bias } => {
                Self::new(weight.to_dtype(dtype)?, bias.to_dtype(dtype)?)
            }
            quantized @ Self::Quantized { .. } => quantized,
        })
    }

    /// `[rows, in]` → `[rows, out]`, in the dtype of `x`.
    pub(crate) fn forward(&self, x: &Tensor) -> candle::Result<Tensor> {
        match self {
            Self::Full { weight, bias } => x.matmul(&weight.t()?)?.broadcast_add(bias),
            Self::Half { weight, bias } => {
                let dtype = multiplied_in(weight);
                let y = x.to_dtype(dtype)?.matmul(&weight.to_dtype(dtype)?.t()?)?;
                y.broadcast_add(&bias.to_dtype(dtype)?)?.to_dtype(x.dtype())
            }
            Self::Quantized { weight, bias } => {
                let y = weight.forward(&x.to_dtype(DType::F32)?.contiguous()?)?;
                y.broadcast_add(&bias.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
            }
        }
    }

    /// [`forward`](Self::forward) over the stacked rows of several images, `rows` of each.
    ///
    /// A CPU's matrix product may round a row differently if there are other rows beside it, so
    /// there every image gets a product of its own: its result is the same bits in any company.
    pub(crate) fn forward_items(&self, x: &Tensor, rows: &[usize]) -> candle::Result<Tensor> {
        if rows.len() <= 1 || !x.device().is_cpu() {
            return self.forward(x);
        }
        let mut first = 0;
        let mut parts = Vec::with_capacity(rows.len());
        for &count in rows {
            parts.push(self.forward(&x.narrow(0, first, count)?)?);
            first += count;
        }
        Tensor::cat(&parts, 0)
    }
}

/// Layer normalisation over the width, with scale and shift.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// `[rows, width]` → the same; rows do not see each other.
    pub(crate) fn forward(&self, x: &Tensor) -> candle::Result<Tensor> {
        candle_nn::ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

impl Activation {
    /// Applies the function to every element.
    pub(crate) fn forward(self, x: &Tensor) -> candle::Result<Tensor> {
        match self {
            // Of a half-precision number candle's kernels compute these two in f32 or exactly.
            Self::Gelu => x.gelu_erf(),
            Self::Relu => x.relu(),
            // The others take powers and exponentials, which f16 has no room for.
            Self::GeluTanh => x.to_dtype(DType::F32)?.gelu()?.to_dtype(x.dtype()),
            Self::QuickGelu => {
                let full = x.to_dtype(DType::F32)?;
                (&full * candle_nn::ops::sigmoid(&(&full * 1.702)?)?)?.to_dtype(x.dtype())
            }
        }
    }
}

/// Scaled dot-product attention, head by head: `softmax(q kᵀ / √d + mask) v`.
///
/// `q` is `[…, queries, d]`, `k` and `v` are `[…, keys, d]` with the same leading dimensions, and
/// `mask`, if there is one, is added to the scores `[…, queries, keys]`.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
) -> candle::Result<Tensor> {
    let width = q.dim(candle_core::D::Minus1)?;
    scaled_attention(&(q * (width as f64).powf(-0.5))?, k, v, mask)
}

/// [`attention`] with queries that are divided by `√d` already: before the product, so that its sums
/// stay small enough for f16.
pub(crate) fn scaled_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
) -> candle::Result<Tensor> {
    let scores = product(q, &k.t()?)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    product(&candle_nn::ops::softmax_last_dim(&scores)?, v)
}

/// A matrix product in the numbers of its operands.
fn product(a: &Tensor, b: &Tensor) -> candle::Result<Tensor> {
    let dtype = multiplied_in(a);
    a.to_dtype(dtype)?.matmul(&b.to_dtype(dtype)?)?.to_dtype(a.dtype())
}

/// The numbers in which candle multiplies these: it has no matrix product of bf16 on a CPU.
fn multiplied_in(x: &Tensor) -> DType {
    match x.dtype() {
        DType::BF16 if x.device().is_cpu() => DType::F32,
        dtype => dtype,
    }
}

/// `[rows, heads · d]` as `[heads, rows, d]`, a view.
pub(crate) fn split_heads(x: &Tensor, heads: usize) -> candle::Result<Tensor> {
    let (rows, width) = x.dims2()?;
    x.reshape((rows, heads, width / heads))?.transpose(0, 1)
}

/// `[heads, rows, d]` as `[rows, heads · d]`.
pub(crate) fn merge_heads(x: &Tensor) -> candle::Result<Tensor> {
    let (heads, rows, d) = x.dims3()?;
    x.transpose(0, 1)?.reshape((rows, heads * d))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(rows: usize, columns: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 % 101) as f32).sin()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    #[test]
    fn an_image_gets_the_same_bits_in_any_company() {
        let linear = Linear::new(sequence(96, 64), sequence(1, 96).squeeze(0).unwrap());
        let x = sequence(9, 64);
        let together = linear.forward_items(&x, &[1, 5, 3]).unwrap().to_vec2::<f32>().unwrap();
        for (first, count) in [(0, 1), (1, 5), (6, 3)] {
            let alone = linear.forward(&x.narrow(0, first, count).unwrap()).unwrap();
            assert_eq!(together[first..first + count], alone.to_vec2::<f32>().unwrap());
        }
    }

    #[test]
    fn half_weights_are_close_to_full_ones() {
        let (weight, bias) = (sequence(96, 64), sequence(1, 96).squeeze(0).unwrap());
        let x = sequence(3, 64);
        let full = Linear::new(weight.clone(), bias.clone()).forward(&x).unwrap();
        for dtype in [DType::F16, DType::BF16] {
            let half = Linear::new(weight.to_dtype(dtype).unwrap(), bias.to_dtype(dtype).unwrap());
            assert!(matches!(half, Linear::Half { .. }));
            let difference = (half.forward(&x).unwrap() - &full).unwrap().abs().unwrap();
            let worst = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst < 0.1, "{dtype:?}: {worst}");
        }
    }

    #[test]
    fn heads_split_and_merge_back() {
        let x = sequence(5, 12);
        let back = merge_heads(&split_heads(&x, 3).unwrap()).unwrap();
        assert_eq!(back.to_vec2::<f32>().unwrap(), x.to_vec2::<f32>().unwrap());
    }
}
