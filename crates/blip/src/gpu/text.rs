//! The text decoder over many rows at once: BERT with post-norm, causal self-attention and
//! cross-attention to the image.
//!
//! Layers with the same input are joined into one matrix where the checkpoint's format allows it,
//! and the factor `1 / √d` is part of the query's weights: on a GPU, kernel launches cost more here
//! than arithmetic.
//!
//! Source: `BlipTextLMHeadModel` in transformers' `modeling_blip_text.py`.

use candle_core::{self as candle, DType, Tensor};

use super::cross_attention::CrossAttention;
use super::layers::{LayerNorm, Linear};
use crate::arithmetic;
use crate::config::{Activation, BlipConfig, TextConfig};
use crate::loader::{Loader, WordsAndHead};
use cutline_cuda::Operations;
use cutline_error::Result;

/// The weights of the decoder.
#[derive(Debug)]
pub(super) struct TextDecoder {
    pub(super) operations: Operations,
    pub(super) heads: usize,
    pub(super) dtype: DType,
    /// `[vocabulary, hidden]` in f32.
    words: Tensor,
    /// `[positions, hidden]` in f32.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<DecoderLayer>,
    head: LmHead,
}

/// The other tokens that the tokens of a pass attend to.
pub(super) trait Attention {
    /// Self-attention in a layer: `[rows, heads, 3, d]` with queries, keys and values of the new
    /// tokens → `[rows, hidden]`.
    fn over_tokens(&self, with: Operations, layer: usize, qkv: &Tensor) -> candle::Result<Tensor>;
}

impl TextDecoder {
    /// Reads `text_decoder.*`. `loader` reads in the precision of the model, `full` in f32.
    pub(super) fn load(
        config: &BlipConfig,
        dtype: DType,
        loader: &Loader<'_>,
        full: &Loader<'_>,
    ) -> Result<Self> {
        let text = &config.text;
        let (hidden, eps) = (text.hidden_size, text.layer_norm_eps);
        let prefix = "text_decoder.bert.embeddings";
        let (head, words) = LmHead::load(config, loader, full)?;
        let positions = full.tensor(
            &format!("{prefix}.position_embeddings.weight"),
            &[text.max_position_embeddings, hidden],
        )?;
        let layers = (0..text.num_hidden_layers)
            .map(|n| DecoderLayer::load(config, dtype, loader, full, n))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            operations: Operations::CUTLINE,
            heads: text.num_attention_heads,
            dtype,
            words,
            positions,
            norm: full.layer_norm(&format!("{prefix}.LayerNorm"), hidden, eps)?,
            layers,
            head,
        })
    }

    /// Reads a token in every row; `tokens` and `positions` are u32, and `states` are those of the
    /// images, `[images, image tokens, width]`: each image has the same number of consecutive rows.
    /// Returns `[rows, hidden]` for [`logits`](Self::logits).
    pub(super) fn read(
        &self,
        tokens: &Tensor,
        positions: &Tensor,
        states: &Tensor,
        attention: &impl Attention,
    ) -> candle::Result<Tensor> {
        let words = self.words.index_select(tokens, 0)?;
        let x = (words + self.positions.index_select(positions, 0)?)?;
        let with = self.operations;
        let mut x = self.norm.forward(with, &x)?.to_dtype(self.dtype)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let qkv = layer.qkv.forward(with, &x, self.heads)?;
            x = layer.forward(with, x, &attention.over_tokens(with, index, &qkv)?, states)?;
        }
        Ok(x)
    }

    /// `[rows, hidden]` → the next token's logits in f32, `[rows, vocabulary]`.
    pub(super) fn logits(&self, x: &Tensor) -> candle::Result<Tensor> {
        self.head.forward(self.operations, x)
    }
}

/// Linear layers with the same input.
#[derive(Debug)]
enum Fused {
    /// Joined into one.
    One(Linear),
    /// Quantised layers, which cannot be joined.
    Several(Vec<Linear>),
}

impl Fused {
    /// Stacks the outputs of f32 layers, rearranges them with `arrange`, and casts to `dtype`.
    fn new(
        layers: Vec<Linear>,
        dtype: DType,
        arrange: impl Fn(&Tensor) -> candle::Result<Tensor>,
    ) -> candle::Result<Self> {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for layer in &layers {
            let Linear::Dense { weight, bias } = layer else {
                return Ok(Self::Several(layers));
            };
            weights.push(weight.clone());
            biases.push(bias.clone());
        }
        let weight = arrange(&Tensor::cat(&weights, 0)?)?.contiguous()?;
        let bias = arrange(&Tensor::cat(&biases, 0)?)?.contiguous()?;
        Ok(Self::One(Linear::Dense { weight, bias }.cast(dtype)?))
    }
}

/// A layer whose outputs are queries divided by `√d`.
#[derive(Debug)]
pub(super) struct Query {
    linear: Linear,
    /// The factor, if it is not part of the weights because the layer is quantised.
    factor: Option<f64>,
}

impl Query {
    pub(super) fn new(linear: Linear, factor: f64) -> candle::Result<Self> {
        Ok(match linear {
            Linear::Dense { weight, bias } => Self {
                linear: Linear::Dense { weight: (weight * factor)?, bias: (bias * factor)? },
                factor: None,
            },
            other => Self { linear: other, factor: Some(factor) },
        })
    }

    /// As [`Linear::cast`].
    pub(super) fn cast(self, dtype: DType) -> candle::Result<Self> {
        Ok(Self { linear: self.linear.cast(dtype)?, ..self })
    }

    pub(super) fn forward(&self, with: Operations, x: &Tensor) -> candle::Result<Tensor> {
        let q = self.linear.forward(with, x)?;
        match self.factor {
            Some(factor) => q * factor,
            None => Ok(q),
        }
    }
}

/// Self-attention, cross-attention and feed-forward, each normalised after its residual.
#[derive(Debug)]
struct DecoderLayer {
    qkv: Qkv,
    self_output: (Linear, LayerNorm),
    cross: CrossAttention,
    cross_output: (Linear, LayerNorm),
    intermediate: Linear,
    activation: Activation,
    output: (Linear, LayerNorm),
}

impl DecoderLayer {
    fn load(
        config: &BlipConfig,
        dtype: DType,
        loader: &Loader<'_>,
        full: &Loader<'_>,
        index: usize,
    ) -> Result<Self> {
        let text = &config.text;
        let (hidden, inner, eps) = (text.hidden_size, text.intermediate_size, text.layer_norm_eps);
        let prefix = format!("text_decoder.bert.encoder.layer.{index}");
        let norm =
            |name: &str| loader.layer_norm(&format!("{prefix}.{name}.LayerNorm"), hidden, eps);
        let output = |name: &str, from| -> Result<(Linear, LayerNorm)> {
            Ok((loader.linear(&format!("{prefix}.{name}.dense"), from, hidden)?, norm(name)?))
        };
        let (cross, cross_linear) =
            CrossAttention::load(config, dtype, loader, full, &format!("{prefix}.crossattention"))?;
        Ok(Self {
            qkv: Qkv::load(text, dtype, full, &format!("{prefix}.attention.self"))?,
            self_output: output("attention.output", hidden)?,
            cross,
            cross_output: (cross_linear, norm("crossattention.output")?),
            intermediate: loader.linear(&format!("{prefix}.intermediate.dense"), hidden, inner)?,
            activation: text.hidden_act,
            output: output("output", inner)?,
        })
    }

    /// `context` is what the self-attention found for `x`.
    fn forward(
        &self,
        with: Operations,
        x: Tensor,
        context: &Tensor,
        states: &Tensor,
    ) -> candle::Result<Tensor> {
        let x = residual(with, &self.self_output, context, x)?;
        let context = self.cross.forward(with, &x, states)?;
        let x = residual(with, &self.cross_output, &context, x)?;
        let inner = self.activation.forward(with, self.intermediate.forward(with, &x)?)?;
        residual(with, &self.output, &inner, x)
    }
}

/// `norm(linear(context) + x)`.
fn residual(
    with: Operations,
    (linear, norm): &(Linear, LayerNorm),
    context: &Tensor,
    x: Tensor,
) -> candle::Result<Tensor> {
    norm.forward(with, &linear.add_to(with, x, context)?)
}

/// The factor of the queries.
pub(super) fn scale(config: &TextConfig) -> f64 {
    (config.head_dim() as f64).powf(-0.5)
}

/// Queries, keys and values of the self-attention.
#[derive(Debug)]
struct Qkv {
    linear: Fused,
    /// As in [`Query`].
    factor: Option<f64>,
}

impl Qkv {
    fn load(config: &TextConfig, dtype: DType, full: &Loader<'_>, prefix: &str) -> Result<Self> {
        let hidden = config.hidden_size;
        let linear = |name: &str| full.linear(&format!("{prefix}.{name}"), hidden, hidden);
        let Query { linear: query, factor } =
            Query::new(linear("query")?, scale(config)).map_err(arithmetic)?;
        let (heads, d) = (config.num_attention_heads, config.head_dim());
        // Head by head, so that the queries can be taken out as evenly spaced matrices.
        let by_head = |rows: &Tensor| {
            let rest: usize = rows.dims()[1..].iter().product();
            let shape = rows.dims().to_vec();
            rows.reshape((3, heads, d, rest))?.transpose(0, 1)?.reshape(shape)
        };
        let all = vec![query, linear("key")?, linear("value")?];
        Ok(Self { linear: Fused::new(all, dtype, by_head).map_err(arithmetic)?, factor })
    }

    /// `[rows, hidden]` → `[rows, heads, 3, d]`.
    fn forward(&self, with: Operations, x: &Tensor, heads: usize) -> candle::Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let d = hidden / heads;
        match &self.linear {
            Fused::One(linear) => linear.forward(with, x)?.reshape((rows, heads, 3, d)),
            Fused::Several(linears) => {
                let mut parts = Vec::with_capacity(3);
                for (index, linear) in linears.iter().enumerate() {
                    let y = linear.forward(with, x)?;
                    let y = match self.factor {
                        Some(factor) if index == 0 => (y * factor)?,
                        _ => y,
                    };
                    parts.push(y.reshape((rows, heads, 1, d))?);
                }
                Tensor::cat(&parts, 2)
            }
        }
    }
}

/// The language-model head: transform and projection to the vocabulary. From the norm on in f32.
#[derive(Debug)]
struct LmHead {
    transform: Linear,
    activation: Activation,
    norm: LayerNorm,
    decoder: Linear,
}

impl LmHead {
    /// The head and the word embedding, which may be the same matrix.
    fn load(config: &BlipConfig, loader: &Loader<'_>, full: &Loader<'_>) -> Result<(Self, Tensor)> {
        let (text, prefix) = (&config.text, "text_decoder.cls.predictions.transform");
        let (hidden, vocabulary) = (text.hidden_size, text.vocab_size);
        let WordsAndHead { words, words_name, head_name } =
            full.words_and_head(text, config.tie_word_embeddings)?;
        let bias = full.tensor(&full.head_bias(head_name), &[vocabulary])?;
        let decoder = match head_name {
            Some(weight) => full.linear_with_bias(weight, bias, hidden, vocabulary)?,
            None => full.tied_linear(words_name, &words, bias)?,
        };
        let loaded = Self {
            transform: loader.linear(&format!("{prefix}.dense"), hidden, hidden)?,
            activation: text.hidden_act,
            norm: full.layer_norm(&format!("{prefix}.LayerNorm"), hidden, text.layer_norm_eps)?,
            decoder,
        };
        Ok((loaded, words))
    }

    fn forward(&self, with: Operations, x: &Tensor) -> candle::Result<Tensor> {
        let x = self.activation.forward(with, self.transform.forward(with, x)?)?;
        self.decoder.forward(with, &self.norm.forward(with, &x.to_dtype(DType::F32)?)?)
    }
}
