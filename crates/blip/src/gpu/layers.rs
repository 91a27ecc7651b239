//! The operations that BLIP is made of, on candle.
//!
//! Activations are row-major `[rows, width]` matrices without a batch dimension.

use candle_core::quantized::QMatMul;
use candle_core::{self as candle, DType, Module, Tensor};

use crate::config::Activation;
use crate::loader::Loader;
use cutline_error::Result;

impl Loader<'_> {
    /// The linear layer `{prefix}.weight`, `{prefix}.bias`.
    pub(super) fn linear(&self, prefix: &str, from: usize, to: usize) -> Result<Linear> {
        let bias = self.tensor(&format!("{prefix}.bias"), &[to])?;
        self.linear_with_bias(&format!("{prefix}.weight"), bias, from, to)
    }

    /// A linear layer whose bias is loaded already.
    pub(super) fn linear_with_bias(
        &self,
        weight: &str,
        bias: Tensor,
        from: usize,
        to: usize,
    ) -> Result<Linear> {
        let shape = [to, from];
        if let Some(quantized) = self.quantized(weight, &shape)? {
            let weight = QMatMul::from_arc(quantized).map_err(crate::arithmetic)?;
            return Ok(Linear::Quantized { weight, bias });
        }
        Ok(Linear::new(self.tensor(weight, &shape)?, bias))
    }

    /// A linear layer over the matrix `shared`, called `weight` in the file, whose parameters are
    /// counted already.
    pub(super) fn tied_linear(
        &self,
        weight: &str,
        shared: &Tensor,
        bias: Tensor,
    ) -> Result<Linear> {
        if let Some(quantized) = self.quantized_again(weight, shared.dims())? {
            let weight = QMatMul::from_arc(quantized).map_err(crate::arithmetic)?;
            return Ok(Linear::Quantized { weight, bias });
        }
        Ok(Linear::new(shared.clone(), bias))
    }

    /// The layer norm `{prefix}.weight`, `{prefix}.bias`.
    pub(super) fn layer_norm(&self, prefix: &str, width: usize, eps: f64) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: self.tensor(&format!("{prefix}.weight"), &[width])?,
            bias: self.tensor(&format!("{prefix}.bias"), &[width])?,
            eps: eps as f32,
        })
    }
}

/// `y = x Wᵀ + b`. Weights are stored `[out, in]`, as in the checkpoint; the transposed matrix is a
/// view, never a copy.
#[derive(Debug, Clone)]
pub(super) enum Linear {
    /// Weights in f32.
    Full { weight: Tensor, bias: Tensor },
    /// Weights in f16 or bf16; an f32 input is converted to it and the result back.
    Half { weight: Tensor, bias: Tensor },
    /// Weights in one of GGUF's block formats; the arithmetic is candle's.
    Quantized { weight: QMatMul, bias: Tensor },
}

impl Linear {
    /// From a weight `[out, in]` and a bias `[out]` of the same dtype.
    pub(super) fn new(weight: Tensor, bias: Tensor) -> Self {
        match weight.dtype() {
            DType::F16 | DType::BF16 => Self::Half { weight, bias },
            _ => Self::Full { weight, bias },
        }
    }

    /// The same layer in `dtype`; a quantised layer stays as it is.
    pub(super) fn cast(self, dtype: DType) -> candle::Result<Self> {
        Ok(match self {
            Self::Full { weight, bias } | Self::Half { weight, bias } => {
                Self::new(weight.to_dtype(dtype)?, bias.to_dtype(dtype)?)
            }
            quantized @ Self::Quantized { .. } => quantized,
        })
    }

    /// `[rows, in]` → `[rows, out]`, in the dtype of `x`.
    pub(super) fn forward(&self, x: &Tensor) -> candle::Result<Tensor> {
        match self {
            Self::Full { weight, bias } => x.matmul(&weight.t()?)?.broadcast_add(bias),
            Self::Half { weight, bias } => {
                let dtype = product_dtype(weight);
                let y = x.to_dtype(dtype)?.matmul(&weight.to_dtype(dtype)?.t()?)?;
                y.broadcast_add(&bias.to_dtype(dtype)?)?.to_dtype(x.dtype())
            }
            Self::Quantized { weight, bias } => {
                let y = weight.forward(&x.to_dtype(DType::F32)?.contiguous()?)?;
                y.broadcast_add(&bias.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
            }
        }
    }
}

/// Layer normalisation over the width, with scale and shift.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// `[rows, width]` → the same shape, each row on its own.
    pub(super) fn forward(&self, x: &Tensor) -> candle::Result<Tensor> {
        candle_nn::ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

impl Activation {
    /// Applies the function to every element.
    pub(super) fn forward(self, x: &Tensor) -> candle::Result<Tensor> {
        match self {
            // In half precision candle's kernels compute these two in f32 or exactly.
            Self::Gelu => x.gelu_erf(),
            Self::Relu => x.relu(),
            // The others take powers and exponentials, which overflow in f16.
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
pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
) -> candle::Result<Tensor> {
    let width = q.dim(candle_core::D::Minus1)?;
    scaled_attention(&(q * (width as f64).powf(-0.5))?, k, v, mask)
}

/// [`attention`] with queries that are already divided by `√d`. Dividing before the product keeps
/// its sums small enough for f16.
pub(super) fn scaled_attention(
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

/// A matrix product in the type of its operands.
fn product(a: &Tensor, b: &Tensor) -> candle::Result<Tensor> {
    let dtype = product_dtype(a);
    a.to_dtype(dtype)?.matmul(&b.to_dtype(dtype)?)?.to_dtype(a.dtype())
}

/// The type in which candle multiplies these: it has no matrix product of bf16 on a CPU.
fn product_dtype(x: &Tensor) -> DType {
    match x.dtype() {
        DType::BF16 if x.device().is_cpu() => DType::F32,
        dtype => dtype,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QTensor};

    fn sequence(rows: usize, columns: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 % 101) as f32).sin()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
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

    /// candle rounds the activations of a block format to 8 bits, in blocks of their own. With the
    /// same rounding, its products agree with sums in double precision.
    #[test]
    fn products_of_blocks_are_exact_apart_from_rounding_the_activations() {
        use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Q8K};
        let (rows, depth, width) = (3, 512, 24);
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values_of = |blocks: &QTensor| values(blocks.dequantize(&Device::Cpu).unwrap());
        let (x, bias) = (sequence(rows, depth), sequence(1, width).squeeze(0).unwrap());
        let biases = values(bias.clone());
        for (kind, rounding, tolerance) in [
            (Q4_0, Q8_0, 1e-6),
            (Q5_0, Q8_0, 1e-6),
            (Q8_0, Q8_0, 1e-6),
            // Blocks with a minimum multiply it by the sum of the activations, which is kept in f16.
            (Q4_1, Q8_0, 1e-4),
            (Q5_1, Q8_0, 1e-4),
            (Q2K, Q8K, 1e-6),
            (Q3K, Q8K, 1e-6),
            (Q4K, Q8K, 1e-6),
            (Q5K, Q8K, 1e-6),
            (Q6K, Q8K, 1e-6),
        ] {
            let weight = QTensor::quantize(&sequence(width, depth), kind).unwrap();
            let weights = values_of(&weight);
            let rounded = values_of(&QTensor::quantize(&x, rounding).unwrap());
            let weight = QMatMul::from_qtensor(weight).unwrap();
            let layer = Linear::Quantized { weight, bias: bias.clone() };
            let mut worst = 0.0_f64;
            for (y, x) in
                values(layer.forward(&x).unwrap()).chunks(width).zip(rounded.chunks(depth))
            {
                for ((y, w), bias) in y.iter().zip(weights.chunks(depth)).zip(&biases) {
                    let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let size = terms.clone().map(f64::abs).sum::<f64>();
                    let sum = terms.sum::<f64>() + f64::from(*bias);
                    worst = worst.max((f64::from(*y) - sum).abs() / size);
                }
            }
            println!("{kind:?}: {worst:.1e}");
            assert!(worst < tolerance, "{kind:?}: {worst}");
        }
    }
}
