//! Cross-attention over an image's states, without keys and values of them.
//!
//! With `k = W_k s + b_k` and `v = W_v s + b_v` for the states `s` of an image:
//!
//! - a score is `q · k = (W_kᵀ q) · s + q · b_k`. The second term is the same for all states, so it
//!   cancels in the softmax, and the first needs only `W_kᵀ q`, once for a token and head.
//! - probabilities sum to one, so the context is `Σ p v = W_v (Σ p s) + b_v`, and `b_v` can be added to
//!   the bias of the layer behind it.
//!
//! So the states are the only matrix of an image, for all layers, heads and beams: for BLIP base 0.9 MB
//! in f16 instead of 21 MB, and no products for a new image. A token costs more arithmetic than with
//! keys and values, 21 MFLOP a layer instead of 2, which a GPU has to spare while it reads memory.

use candle_core::{self as candle, DType, Tensor};

use super::layers::Linear;
use super::text::{Query, scale};
use crate::arithmetic;
use crate::config::BlipConfig;
use crate::loader::Loader;
use cutline_cuda::{Arrangement, Operations};
use cutline_error::Result;

/// The weights of a layer's cross-attention.
#[derive(Debug)]
pub(super) struct CrossAttention {
    query: Query,
    /// `[heads, d, image width]`: for each head, the part of `W_k` that makes its keys.
    keys: Tensor,
    /// The same of `W_v`.
    values: Tensor,
}

impl CrossAttention {
    /// Reads `{prefix}.self.*`, and `{prefix}.output.dense`, whose bias includes that of the values.
    pub(super) fn load(
        config: &BlipConfig,
        dtype: DType,
        loader: &Loader<'_>,
        full: &Loader<'_>,
        prefix: &str,
    ) -> Result<(Self, Linear)> {
        let (text, from) = (&config.text, config.vision.hidden_size);
        let (hidden, heads) = (text.hidden_size, text.num_attention_heads);
        let by_head = |name: &str| {
            let weight = loader.tensor(&format!("{prefix}.self.{name}.weight"), &[hidden, from])?;
            weight.reshape((heads, hidden / heads, from)).map_err(arithmetic)
        };
        let bias = |name: &str| full.tensor(&format!("{prefix}.self.{name}.bias"), &[hidden]);
        // It has no effect, but a checkpoint without it is broken.
        bias("key")?;
        let query = full.linear(&format!("{prefix}.self.query"), hidden, hidden)?;
        let query = Query::new(query, scale(text)).and_then(|query| query.cast(dtype));
        let output = full.linear(&format!("{prefix}.output.dense"), hidden, hidden)?;
        let output = output.with_constant_added(&bias("value")?);
        let weights = Self {
            query: query.map_err(arithmetic)?,
            keys: by_head("key")?,
            values: by_head("value")?,
        };
        let output = output.and_then(|output| output.cast(dtype));
        Ok((weights, output.map_err(arithmetic)?))
    }

    /// `x` is `[rows, hidden]`, and `states` are those of the images, `[images, tokens, width]`: each
    /// image has the same number of consecutive rows. The result is `[rows, hidden]` without the bias of
    /// the values.
    pub(super) fn forward(
        &self,
        with: Operations,
        x: &Tensor,
        states: &Tensor,
    ) -> candle::Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let ((heads, d, width), dtype) = (self.keys.dims3()?, x.dtype());
        let q = self.query.forward(with, x)?.reshape((rows, heads, d))?;
        let q = with.product(&q.transpose(0, 1)?, &self.keys, dtype, Arrangement::BatchInside)?;
        // An image's queries: all heads of all of its rows.
        let images = states.dim(0)?;
        let q = q.reshape((images, rows / images * heads, width))?;
        let scores =
            with.product(&q, &states.transpose(1, 2)?, DType::F32, Arrangement::BatchFirst)?;
        let p = with.softmax(&scores, dtype)?;
        let read = with.product(&p, states, dtype, Arrangement::BatchFirst)?;
        let read = read.reshape((rows, heads, width))?.transpose(0, 1)?;
        let values = self.values.transpose(1, 2)?;
        with.product(&read, &values, dtype, Arrangement::BatchInside)?.reshape((rows, hidden))
    }
}
