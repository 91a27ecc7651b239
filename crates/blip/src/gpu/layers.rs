//! The operations that BLIP is made of, on candle.
//!
//! Activations are row-major `[rows, width]` matrices without a batch dimension.

use candle_core::quantized::QMatMul;
use candle_core::{self as candle, DType, Module, Tensor};

use crate::config::Activation;
use crate::loader::Loader;
use cutline_cuda::Operations;
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
        Ok(Linear::Dense { weight: self.tensor(weight, &shape)?, bias })
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
        Ok(Linear::Dense { weight: shared.clone(), bias })
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

/// `y = x Wᵀ + b`. Weights are stored `[out, in]`, as in the checkpoint.
#[derive(Debug, Clone)]
pub(super) enum Linear {
    /// Weight and bias in the type of the activations.
    Dense { weight: Tensor, bias: Tensor },
    /// Weights in one of GGUF's block formats; the arithmetic is candle's.
    Quantized { weight: QMatMul, bias: Tensor },
}

impl Linear {
    /// The same layer in `dtype`; a quantised layer stays as it is.
    pub(super) fn cast(self, dtype: DType) -> candle::Result<Self> {
        Ok(match self {
            Self::Dense { weight, bias } => {
                Self::Dense { weight: weight.to_dtype(dtype)?, bias: bias.to_dtype(dtype)? }
            }
            quantized @ Self::Quantized { .. } => quantized,
        })
    }

    /// The layer that gives for `x` what this one gives for `x + constant`, `[in]`.
    pub(super) fn with_constant_added(self, constant: &Tensor) -> candle::Result<Self> {
        let bias = self.forward(Operations::CANDLE, &constant.unsqueeze(0)?)?.squeeze(0)?;
        Ok(match self {
            Self::Dense { weight, .. } => Self::Dense { weight, bias },
            Self::Quantized { weight, .. } => Self::Quantized { weight, bias },
        })
    }

    /// `[rows, in]` → `[rows, out]`, in the dtype of `x`.
    pub(super) fn forward(&self, with: Operations, x: &Tensor) -> candle::Result<Tensor> {
        match self {
            Self::Dense { weight, bias } => with.linear(&x.contiguous()?, weight, bias),
            Self::Quantized { weight, bias } => {
                let y = weight.forward(&x.to_dtype(DType::F32)?.contiguous()?)?;
                y.broadcast_add(&bias.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
            }
        }
    }

    /// `y` plus what the layer gives for `x`. The memory of `y` is used for the sum, so nothing else
    /// may need it.
    pub(super) fn add_to(&self, with: Operations, y: Tensor, x: &Tensor) -> candle::Result<Tensor> {
        match self {
            Self::Dense { weight, bias } => with.add_linear(y, &x.contiguous()?, weight, bias),
            Self::Quantized { .. } => self.forward(with, x)? + y,
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
    pub(super) fn forward(&self, with: Operations, x: &Tensor) -> candle::Result<Tensor> {
        with.layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

impl Activation {
    /// Applies the function to every element. The memory of `x` may be used for the result, so nothing
    /// else may need it.
    pub(super) fn forward(self, with: Operations, x: Tensor) -> candle::Result<Tensor> {
        match self {
            Self::Gelu => with.gelu(x),
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

/// Attention of a prompt, head by head: `softmax(q kᵀ + mask) v`, with queries that are already divided
/// by `√d`.
///
/// `q` is `[…, queries, d]`, `k` and `v` are `[…, keys, d]` with the same leading dimensions, and
/// `mask` is added to the scores `[…, queries, keys]`.
pub(super) fn masked_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
) -> candle::Result<Tensor> {
    let scores = product(q, &k.t()?)?.broadcast_add(mask)?;
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
    fn a_constant_input_becomes_part_of_the_bias() {
        let (weight, bias) = (sequence(96, 64), sequence(1, 96).squeeze(0).unwrap());
        let (x, constant) = (sequence(3, 64), sequence(2, 64).get(1).unwrap());
        let quantized = QTensor::quantize(&weight, GgmlDType::Q8_0).unwrap();
        let quantized = QMatMul::from_qtensor(quantized).unwrap();
        for (layer, tolerance) in [
            (Linear::Dense { weight, bias: bias.clone() }, 1e-4),
            (Linear::Quantized { weight: quantized, bias }, 0.1),
        ] {
            let expected =
                layer.forward(Operations::CUTLINE, &x.broadcast_add(&constant).unwrap()).unwrap();
            let shifted = layer.with_constant_added(&constant).unwrap();
            let difference = (shifted.forward(Operations::CUTLINE, &x).unwrap() - expected)
                .unwrap()
                .abs()
                .unwrap();
            let worst = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst < tolerance, "{worst}");
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
            for (y, x) in values(layer.forward(Operations::CUTLINE, &x).unwrap())
                .chunks(width)
                .zip(rounded.chunks(depth))
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
