//! Where the tokens of a pass look: the two ways to go over the slots of a pool.

use candle_core::{self as candle, DType, Device, Tensor};

use super::pool::Pool;
use super::slots::runs;
use super::text::Attend;
use crate::layers::scaled_attention;

/// Every slot up to the last that takes part, one token a row.
pub(super) struct StepAttend<'a> {
    pub(super) pool: &'a Pool,
    pub(super) span: usize,
    /// Places that are looked at.
    pub(super) places: usize,
    /// The place that each number of the new keys and values is written to.
    pub(super) written: Tensor,
    /// `[rows, 1, 1, places]`.
    pub(super) mask: Tensor,
}

impl Attend for StepAttend<'_> {
    fn tokens(&self, layer: usize, qkv: &Tensor) -> candle::Result<Tensor> {
        let (rows, heads, _, d) = qkv.dims4()?;
        let own = self.pool.own.get(layer)?.narrow(0, 0, rows)?;
        let new = qkv.narrow(2, 1, 2)?.contiguous()?.unsqueeze(3)?;
        own.scatter_set(&self.written, &new, 3)?;
        let part = |n| own.narrow(2, n, 1)?.squeeze(2)?.narrow(2, 0, self.places);
        let q = qkv.narrow(2, 0, 1)?;
        let context = scaled_attention(&q, &part(0)?, &part(1)?, Some(&self.mask))?;
        context.reshape((rows, heads * d))
    }

    fn image(&self, layer: usize) -> candle::Result<(Tensor, Tensor)> {
        let part = |all: &Tensor| all.get(layer)?.narrow(0, 0, self.span);
        Ok((part(&self.pool.keys)?, part(&self.pool.values)?))
    }
}

/// The slots of new items, several tokens of each.
pub(super) struct PromptAttend<'a> {
    pub(super) pool: &'a Pool,
    pub(super) tokens: usize,
    pub(super) slots: Vec<usize>,
    /// The same on the device.
    pub(super) chosen: Tensor,
    /// `[tokens, tokens]`.
    pub(super) mask: Tensor,
}

impl Attend for PromptAttend<'_> {
    fn tokens(&self, layer: usize, qkv: &Tensor) -> candle::Result<Tensor> {
        let (rows, heads, _, d) = qkv.dims4()?;
        let (items, lanes) = (self.slots.len(), self.pool.lanes);
        let parts = qkv.reshape(&[items, self.tokens, heads, 3, d][..])?;
        let parts = parts.permute([3, 0, 2, 1, 4])?.contiguous()?;
        let (q, k, v) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
        // Into every row of the slot, of which the one that is continued is then any.
        let both = Tensor::stack(&[&k, &v], 2)?.unsqueeze(1)?;
        let both = both.broadcast_as(&[items, lanes, heads, 2, self.tokens, d][..])?;
        let both = both.reshape(&[items * lanes, heads, 2, self.tokens, d][..])?;
        let own = self.pool.own.get(layer)?;
        let mut done = 0;
        for (first, count) in runs(&self.slots) {
            let (from, rows) = (done * lanes, count * lanes);
            let there = own.narrow(0, first * lanes, rows)?;
            there.slice_set(&both.narrow(0, from, rows)?, 3, 0)?;
            done += count;
        }
        let context = scaled_attention(&q, &k, &v, Some(&self.mask))?;
        context.transpose(1, 2)?.reshape((rows, heads * d))
    }

    fn image(&self, layer: usize) -> candle::Result<(Tensor, Tensor)> {
        let part = |all: &Tensor| match runs(&self.slots)[..] {
            [(first, count)] => all.get(layer)?.narrow(0, first, count),
            _ => all.get(layer)?.index_select(&self.chosen, 0),
        };
        Ok((part(&self.pool.keys)?, part(&self.pool.values)?))
    }
}

/// `[tokens, tokens]`: zero where a token may look, −∞ at those behind it.
pub(super) fn causal_mask(tokens: usize, dtype: DType, device: &Device) -> candle::Result<Tensor> {
    let value = |n: usize| if n % tokens > n / tokens { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..tokens * tokens).map(value).collect();
    Tensor::from_vec(values, (tokens, tokens), device)?.to_dtype(dtype)
}
