//! The sizes that all pools share, their buffers, and the mask of a prompt.

use candle_core::{self as candle, DType, Device, Tensor};

use crate::arithmetic;
use crate::config::BlipConfig;
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
    /// Width of an image's states.
    pub(super) image_width: usize,
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
    /// The images' states, `[slots, image tokens, image width]`.
    pub(super) states: Tensor,
    /// Keys and values of the self-attention,
    /// `[layers, slots · rows per slot, heads, 2, positions, d]`.
    pub(super) self_kv: Tensor,
}

impl PoolShape {
    pub(super) fn new(config: &BlipConfig, dtype: DType, device: &Device, growth: usize) -> Self {
        let BlipConfig { text, vision, .. } = config;
        Self {
            layers: text.num_hidden_layers,
            heads: text.num_attention_heads,
            head_dim: text.head_dim(),
            image_width: vision.hidden_size,
            max_positions: text.max_position_embeddings,
            vocabulary: text.vocab_size,
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
        let new = || {
            Ok(Buffers {
                states: self.zeros(&[slots, image_tokens, self.image_width])?,
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
        let config = BlipConfig::from_json(json).unwrap();
        let shape = PoolShape::new(&config, DType::F16, &Device::Cpu, 32);
        let error = shape.buffers(1 << 13, 1, 577, 32).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert!(shape.zeros(&shape.self_kv(1 << 12, 512)).is_err());
    }
}
