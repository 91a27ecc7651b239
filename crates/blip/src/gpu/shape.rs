//! What all pools have in common: sizes, and small tensors that are made once.

use candle_core::{self as candle, DType, Device, Tensor};

use crate::arithmetic;
use crate::config::TextConfig;
use cutline_error::Result;

/// Elements of a buffer: candle's kernels count them in 32 bits, some of them with a sign.
const MAX_ELEMENTS: usize = (1 << 31) - 1;

/// What all pools have in common.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) d: usize,
    pub(super) max_positions: usize,
    pub(super) vocabulary: usize,
    /// Tokens by which caches grow.
    pub(super) step: usize,
    pub(super) dtype: DType,
    pub(super) device: Device,
}

impl Shape {
    pub(super) fn new(config: &TextConfig, dtype: DType, device: &Device, step: usize) -> Self {
        Self {
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            d: config.head_dim(),
            max_positions: config.max_position_embeddings,
            vocabulary: config.vocab_size,
            step,
            dtype,
            device: device.clone(),
        }
    }

    /// Of a pool's buffer for the tokens' keys and values.
    pub(super) fn own(&self, rows: usize, places: usize) -> Vec<usize> {
        vec![self.layers, rows, self.heads, 2, places, self.d]
    }

    /// The buffers of a pool, of zeros: the images' keys and values, and those of the tokens.
    pub(super) fn buffers(
        &self,
        slots: usize,
        lanes: usize,
        tokens: usize,
        places: usize,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let image = [self.layers, slots, self.heads, tokens, self.d];
        let all = || {
            let own = self.zeros(&self.own(slots * lanes, places))?;
            Ok((self.zeros(&image)?, self.zeros(&image)?, own))
        };
        all().map_err(arithmetic)
    }

    /// Zeros of these dimensions, unless candle could not count them: that is want of memory, which
    /// fewer captions at once get by with.
    pub(super) fn zeros(&self, dims: &[usize]) -> candle::Result<Tensor> {
        if dims.iter().product::<usize>() > MAX_ELEMENTS {
            candle::bail!("out of memory: candle counts no more than {MAX_ELEMENTS} elements")
        }
        Tensor::zeros(dims, self.dtype, &self.device)
    }
}

/// Small tensors that are made once.
#[derive(Debug)]
pub(super) struct Constants {
    /// 0, 1, 2, …: `[1, places]`.
    places: Tensor,
    /// `[1, 1]`.
    zero: Tensor,
    /// −∞, `[1, 1]`.
    never: Tensor,
}

impl Constants {
    pub(super) fn new(shape: &Shape) -> candle::Result<Self> {
        let device = &shape.device;
        let number = |x: f32| Tensor::full(x, (1, 1), device)?.to_dtype(shape.dtype);
        let places = shape.max_positions.next_multiple_of(shape.step) as u32;
        Ok(Self {
            places: Tensor::arange(0, places, device)?.unsqueeze(0)?,
            zero: number(0.0)?,
            never: number(f32::NEG_INFINITY)?,
        })
    }

    /// For rows at these positions, `[rows, 1, 1, places]`: zero at the places that a row has
    /// written, −∞ at those behind.
    pub(super) fn mask(&self, positions: &Tensor, places: usize) -> candle::Result<Tensor> {
        let rows = positions.dim(0)?;
        let shape = (rows, places);
        let written = self.places.narrow(1, 0, places)?;
        let written = written.broadcast_le(&positions.reshape((rows, 1))?)?;
        let mask = written
            .where_cond(&self.zero.broadcast_as(shape)?, &self.never.broadcast_as(shape)?)?;
        mask.reshape((rows, 1, 1, places))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutline_error::ErrorKind;

    #[test]
    fn more_than_candle_can_count_is_want_of_memory() {
        let json = br#"{"model_type": "blip"}"#;
        let config = crate::BlipConfig::from_json(json).unwrap().text;
        let shape = Shape::new(&config, DType::F16, &Device::Cpu, 32);
        let error = shape.buffers(1 << 12, 1, 577, 32).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert!(shape.zeros(&shape.own(1 << 12, 512)).is_err());
    }
}
