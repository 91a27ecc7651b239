//! The sizes that all pools share, their buffers, and small tensors that are made once.

use candle_core::{self as candle, DType, Device, Tensor};

use crate::arithmetic;
use crate::config::TextConfig;
use crate::failure::too_large;
use cutline_error::Result;

/// The most elements of a buffer: candle's kernels count them in 32 bits, some of them with a sign.
const MAX_ELEMENTS: usize = (1 << 31) - 1;

/// The dimensions and types that all pools of a model share.
#[derive(Debug, Clone)]
pub(super) struct PoolShape {
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) max_positions: usize,
    pub(super) vocabulary: usize,
    /// Positions by which caches grow.
    pub(super) growth: usize,
    pub(super) dtype: DType,
    pub(super) device: Device,
}

/// The tensors of a pool.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Keys of the cross-attention, `[layers, slots, heads, image tokens, d]`.
    pub(super) cross_keys: Tensor,
    /// Values of the cross-attention, of the same shape.
    pub(super) cross_values: Tensor,
    /// Keys and values of the self-attention,
    /// `[layers, slots · rows per slot, heads, 2, positions, d]`.
    pub(super) self_kv: Tensor,
}

impl PoolShape {
    pub(super) fn new(config: &TextConfig, dtype: DType, device: &Device, growth: usize) -> Self {
        Self {
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            head_dim: config.head_dim(),
            max_positions: config.max_position_embeddings,
            vocabulary: config.vocab_size,
            growth,
            dtype,
            device: device.clone(),
        }
    }

    /// The dimensions of a self-attention cache.
    pub(super) fn self_kv(&self, rows: usize, positions: usize) -> Vec<usize> {
        vec![self.layers, rows, self.heads, 2, positions, self.head_dim]
    }

    /// The buffers of a pool, filled with zeros.
    pub(super) fn buffers(
        &self,
        slots: usize,
        rows_per_slot: usize,
        image_tokens: usize,
        positions: usize,
    ) -> Result<Buffers> {
        let cross = [self.layers, slots, self.heads, image_tokens, self.head_dim];
        let new = || {
            Ok(Buffers {
                cross_keys: self.zeros(&cross)?,
                cross_values: self.zeros(&cross)?,
                self_kv: self.zeros(&self.self_kv(slots * rows_per_slot, positions))?,
            })
        };
        new().map_err(arithmetic)
    }

    /// Zeros of these dimensions. More elements than candle can count are reported as lack of
    /// memory, because fewer captions at once solve the problem.
    pub(super) fn zeros(&self, dims: &[usize]) -> candle::Result<Tensor> {
        if dims.iter().product::<usize>() > MAX_ELEMENTS {
            let limit = format!("candle counts no more than {MAX_ELEMENTS} elements");
            return Err(too_large(limit));
        }
        Tensor::zeros(dims, self.dtype, &self.device)
    }
}

/// Small tensors that are made once.
#[derive(Debug)]
pub(super) struct Constants {
    /// 0, 1, 2, …: `[1, positions]`.
    positions: Tensor,
    /// `[1, 1]`.
    zero: Tensor,
    /// −∞, `[1, 1]`.
    minus_infinity: Tensor,
}

impl Constants {
    pub(super) fn new(shape: &PoolShape) -> candle::Result<Self> {
        let device = &shape.device;
        let number = |x: f32| Tensor::full(x, (1, 1), device)?.to_dtype(shape.dtype);
        let positions = shape.max_positions.next_multiple_of(shape.growth) as u32;
        Ok(Self {
            positions: Tensor::arange(0, positions, device)?.unsqueeze(0)?,
            zero: number(0.0)?,
            minus_infinity: number(f32::NEG_INFINITY)?,
        })
    }

    /// The mask of a decode step, `[rows, 1, 1, length]`: zero up to the row's own position, −∞
    /// behind it. `positions` holds the position of each row.
    pub(super) fn step_mask(&self, positions: &Tensor, length: usize) -> candle::Result<Tensor> {
        let rows = positions.dim(0)?;
        let shape = (rows, length);
        let visible = self.positions.narrow(1, 0, length)?;
        let visible = visible.broadcast_le(&positions.reshape((rows, 1))?)?;
        let mask = visible.where_cond(
            &self.zero.broadcast_as(shape)?,
            &self.minus_infinity.broadcast_as(shape)?,
        )?;
        mask.reshape((rows, 1, 1, length))
    }
}

/// `[tokens, tokens]`: zero where a token may look, −∞ at the tokens behind it.
pub(super) fn causal_mask(tokens: usize, dtype: DType, device: &Device) -> candle::Result<Tensor> {
    let value = |n: usize| if n % tokens > n / tokens { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..tokens * tokens).map(value).collect();
    Tensor::from_vec(values, (tokens, tokens), device)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutline_error::ErrorKind;

    #[test]
    fn more_than_candle_can_count_is_lack_of_memory() {
        let json = br#"{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]}"#;
        let config = crate::BlipConfig::from_json(json).unwrap().text;
        let shape = PoolShape::new(&config, DType::F16, &Device::Cpu, 32);
        let error = shape.buffers(1 << 12, 1, 577, 32).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert!(shape.zeros(&shape.self_kv(1 << 12, 512)).is_err());
    }
}
