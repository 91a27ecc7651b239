//! Everything that changes while captions are decoded: one [`ItemState`] an image, beside weights
//! that never change.

use candle_core::{DType, Device, Result, Tensor};

use crate::config::TextConfig;

/// Keys and values of one decoder layer.
#[derive(Debug, Clone)]
pub(crate) struct KeyValue {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// One image in the batch: its cross-attention, its rows and their self-attention cache.
#[derive(Debug)]
pub struct ItemState {
    /// Sequences that are decoded for this image: beams or samples.
    rows: usize,
    /// Tokens that the cache holds of every row.
    position: usize,
    /// Tokens that the cache has room for.
    capacity: usize,
    /// Of the image, by layer: `[heads, image tokens, d]`, shared by all rows.
    cross: Vec<KeyValue>,
    /// Of the tokens, by layer: `[rows, heads, capacity, d]`, filled up to `position`.
    own: Vec<KeyValue>,
}

impl ItemState {
    /// A state of one row with an empty cache of `capacity` tokens.
    pub(crate) fn new(
        config: &TextConfig,
        cross: Vec<KeyValue>,
        capacity: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = (1, config.num_attention_heads, capacity, config.head_dim());
        let empty = || Tensor::zeros(shape, dtype, device);
        let own = cross
            .iter()
            .map(|_| Ok(KeyValue { keys: empty()?, values: empty()? }))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { rows: 1, position: 0, capacity, cross, own })
    }

    /// Sequences that are decoded for this image.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens that are read of every row; also the position of the next one.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Tokens that the cache has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether the cache has no room for another token.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.position == self.capacity
    }

    /// The image's keys and values in a layer, `[heads, image tokens, d]`.
    pub(crate) fn cross(&self, layer: usize) -> &KeyValue {
        &self.cross[layer]
    }

    /// Writes the keys and values of the next tokens, `[rows, heads, tokens, d]`, behind the
    /// cached ones and gives back all of them. The position moves only with [`advance`].
    ///
    /// [`advance`]: Self::advance
    pub(crate) fn append(&self, layer: usize, new: &KeyValue) -> Result<KeyValue> {
        let tokens = new.keys.dim(2)?;
        let own = &self.own[layer];
        own.keys.slice_set(&new.keys.contiguous()?, 2, self.position)?;
        own.values.slice_set(&new.values.contiguous()?, 2, self.position)?;
        let filled = self.position + tokens;
        Ok(KeyValue {
            keys: own.keys.narrow(2, 0, filled)?,
            values: own.values.narrow(2, 0, filled)?,
        })
    }

    /// Counts tokens that were appended in every layer.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.position += tokens;
    }

    /// Makes row `n` a continuation of the former row `sources[n]`; rows that are not named are
    /// dropped, rows named twice are copied.
    ///
    /// # Errors
    /// A source is not a row, or the copy failed.
    pub(crate) fn reorder(&mut self, sources: &[usize]) -> Result<()> {
        if sources.iter().copied().eq(0..self.rows) {
            return Ok(());
        }
        let indices: Vec<u32> = sources.iter().map(|&row| row as u32).collect();
        for layer in &mut self.own {
            let indices = Tensor::new(indices.as_slice(), layer.keys.device())?;
            for tensor in [&mut layer.keys, &mut layer.values] {
                *tensor = tensor.index_select(&indices, 0)?;
            }
        }
        self.rows = sources.len();
        Ok(())
    }
}
