//! The text decoder over many rows at once: BERT with post-norm, causal self-attention and
//! cross-attention to the image.
//!
//! Layers with the same input are joined into one matrix where the checkpoint's format allows it,
//! and the factor `1 / √d` is part of the query's weights: on a GPU, kernel launches cost more here
//! than arithmetic.
//!
//! Source: `BlipTextLMHeadModel` in transformers' `modeling_blip_text.py`.

use candle_core::{self as candle, DType, Tensor};

use super::layers::{LayerNorm, Linear, scaled_attention};
use super::top_logits::{PADDING, row_length};
use crate::arithmetic;
use crate::config::{Activation, BlipConfig, TextConfig};
use crate::loader::{Loader, WordsAndHead};
use cutline_error::Result;

/// The weights of the decoder.
#[derive(Debug)]
pub(super) struct TextDecoder {
    pub(super) heads: usize,
    pub(super) dtype: DType,
    /// `[vocabulary or more, hidden]` in f32.
    words: Tensor,
    /// `[positions, hidden]` in f32.
    positions: Tensor,
    norm: LayerNorm,
    cross_kv: CrossKvProjection,
    layers: Vec<DecoderLayer>,
    head: LmHead,
}

/// The keys and values that the tokens of a pass attend to.
pub(super) trait Attention {
    /// Self-attention in a layer: `[rows, heads, 3, d]` with queries, keys and values of the new
    /// tokens → `[rows, hidden]`.
    fn over_tokens(&self, layer: usize, qkv: &Tensor) -> candle::Result<Tensor>;

    /// The images' keys and values in a layer, `[images, heads, image tokens, d]` each; every image
    /// has the same number of consecutive rows.
    fn cross_kv(&self, layer: usize) -> candle::Result<(Tensor, Tensor)>;
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
            .map(|n| DecoderLayer::load(text, dtype, loader, full, n))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            heads: text.num_attention_heads,
            dtype,
            words,
            positions,
            norm: full.layer_norm(&format!("{prefix}.LayerNorm"), hidden, eps)?,
            cross_kv: CrossKvProjection::load(config, dtype, full)?,
            layers,
            head,
        })
    }

    /// The cross-attention's keys and values of all layers, `[layers, images, heads, tokens, d]`
    /// each, from the images' states `[images, tokens, width]`.
    pub(super) fn keys_and_values(&self, states: &Tensor) -> candle::Result<(Tensor, Tensor)> {
        self.cross_kv.forward(states, self.heads)
    }

    /// Reads a token in every row; `tokens` and `positions` are u32. Returns `[rows, hidden]` for
    /// [`logits`](Self::logits).
    pub(super) fn read(
        &self,
        tokens: &Tensor,
        positions: &Tensor,
        attention: &impl Attention,
    ) -> candle::Result<Tensor> {
        let words = self.words.index_select(tokens, 0)?;
        let x = (words + self.positions.index_select(positions, 0)?)?;
        let mut x = self.norm.forward(&x)?.to_dtype(self.dtype)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, self.heads, index, attention)?;
        }
        Ok(x)
    }

    /// `[rows, hidden]` → the next token's logits in f32, `[rows, row_length(vocabulary)]`.
    pub(super) fn logits(&self, x: &Tensor) -> candle::Result<Tensor> {
        self.head.forward(x)
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
            let Linear::Full { weight, bias } = layer else {
                return Ok(Self::Several(layers));
            };
            weights.push(weight.clone());
            biases.push(bias.clone());
        }
        let weight = arrange(&Tensor::cat(&weights, 0)?)?.contiguous()?;
        let bias = arrange(&Tensor::cat(&biases, 0)?)?.contiguous()?;
        Ok(Self::One(Linear::new(weight, bias).cast(dtype)?))
    }
}

/// A layer whose outputs are queries divided by `√d`.
#[derive(Debug)]
struct Query {
    linear: Linear,
    /// The factor, if it is not part of the weights because the layer is quantised.
    factor: Option<f64>,
}

impl Query {
    fn new(linear: Linear, factor: f64) -> candle::Result<Self> {
        Ok(match linear {
            Linear::Full { weight, bias } => {
                Self { linear: Linear::new((weight * factor)?, (bias * factor)?), factor: None }
            }
            other => Self { linear: other, factor: Some(factor) },
        })
    }

    fn forward(&self, x: &Tensor) -> candle::Result<Tensor> {
        let q = self.linear.forward(x)?;
        match self.factor {
            Some(factor) => q * factor,
            None => Ok(q),
        }
    }
}

/// The keys and values of all layers' cross-attention.
#[derive(Debug)]
struct CrossKvProjection {
    layers: usize,
    /// The keys of all layers, then their values.
    linear: Fused,
}

impl CrossKvProjection {
    fn load(config: &BlipConfig, dtype: DType, full: &Loader<'_>) -> Result<Self> {
        let (text, from) = (&config.text, config.vision.hidden_size);
        let layers = text.num_hidden_layers;
        let linear = |name: &str, n: usize| {
            let prefix = format!("text_decoder.bert.encoder.layer.{n}.crossattention.self.{name}");
            full.linear(&prefix, from, text.hidden_size)
        };
        let all = (0..layers)
            .map(|n| linear("key", n))
            .chain((0..layers).map(|n| linear("value", n)))
            .collect::<Result<Vec<_>>>()?;
        let linear = Fused::new(all, dtype, |rows| Ok(rows.clone())).map_err(arithmetic)?;
        Ok(Self { layers, linear })
    }

    fn forward(&self, states: &Tensor, heads: usize) -> candle::Result<(Tensor, Tensor)> {
        let (images, tokens, width) = states.dims3()?;
        let states = states.reshape((images * tokens, width))?;
        let both = match &self.linear {
            Fused::One(linear) => {
                let y = linear.forward(&states)?;
                let d = y.dim(1)? / (2 * self.layers * heads);
                let shape = [images, tokens, 2, self.layers, heads, d];
                y.reshape(&shape[..])?.permute([2, 3, 0, 4, 1, 5])?.contiguous()?
            }
            Fused::Several(linears) => {
                let each = |linear: &Linear| {
                    let y = linear.forward(&states)?;
                    let shape = (images, tokens, heads, y.dim(1)? / heads);
                    y.reshape(shape)?.transpose(1, 2)?.contiguous()
                };
                let all = linears.iter().map(each).collect::<candle::Result<Vec<_>>>()?;
                let (_, _, _, d) = all[0].dims4()?;
                let shape = [2, self.layers, images, heads, tokens, d];
                Tensor::stack(&all, 0)?.reshape(&shape[..])?
            }
        };
        Ok((both.get(0)?, both.get(1)?))
    }
}

/// Self-attention, cross-attention and feed-forward, each normalised after its residual.
#[derive(Debug)]
struct DecoderLayer {
    qkv: Qkv,
    self_output: (Linear, LayerNorm),
    query: Query,
    cross_output: (Linear, LayerNorm),
    intermediate: Linear,
    activation: Activation,
    output: (Linear, LayerNorm),
}

impl DecoderLayer {
    fn load(
        config: &TextConfig,
        dtype: DType,
        loader: &Loader<'_>,
        full: &Loader<'_>,
        index: usize,
    ) -> Result<Self> {
        let (hidden, inner, eps) =
            (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let prefix = format!("text_decoder.bert.encoder.layer.{index}");
        let output = |name: &str, from| -> Result<(Linear, LayerNorm)> {
            let linear = loader.linear(&format!("{prefix}.{name}.dense"), from, hidden)?;
            Ok((linear, loader.layer_norm(&format!("{prefix}.{name}.LayerNorm"), hidden, eps)?))
        };
        let query = full.linear(&format!("{prefix}.crossattention.self.query"), hidden, hidden)?;
        let mut query = Query::new(query, scale(config)).map_err(arithmetic)?;
        query.linear = query.linear.cast(dtype).map_err(arithmetic)?;
        Ok(Self {
            qkv: Qkv::load(config, dtype, full, &format!("{prefix}.attention.self"))?,
            self_output: output("attention.output", hidden)?,
            query,
            cross_output: output("crossattention.output", hidden)?,
            intermediate: loader.linear(&format!("{prefix}.intermediate.dense"), hidden, inner)?,
            activation: config.hidden_act,
            output: output("output", inner)?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        heads: usize,
        index: usize,
        attention: &impl Attention,
    ) -> candle::Result<Tensor> {
        let context = attention.over_tokens(index, &self.qkv.forward(x, heads)?)?;
        let x = residual(&self.self_output, &context, x)?;
        let context = self.over_image(&x, heads, &attention.cross_kv(index)?)?;
        let x = residual(&self.cross_output, &context, &x)?;
        let inner = self.activation.forward(&self.intermediate.forward(&x)?)?;
        residual(&self.output, &inner, &x)
    }

    fn over_image(
        &self,
        x: &Tensor,
        heads: usize,
        (keys, values): &(Tensor, Tensor),
    ) -> candle::Result<Tensor> {
        let ((rows, hidden), images) = (x.dims2()?, keys.dim(0)?);
        let shape = (images, rows / images, heads, hidden / heads);
        let q = self.query.forward(x)?.reshape(shape)?.transpose(1, 2)?.contiguous()?;
        let context = scaled_attention(&q, keys, values, None)?;
        context.transpose(1, 2)?.reshape((rows, hidden))
    }
}

/// `norm(linear(context) + x)`.
fn residual(
    (linear, norm): &(Linear, LayerNorm),
    context: &Tensor,
    x: &Tensor,
) -> candle::Result<Tensor> {
    norm.forward(&(linear.forward(context)? + x)?)
}

/// The factor of the queries.
fn scale(config: &TextConfig) -> f64 {
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
    fn forward(&self, x: &Tensor, heads: usize) -> candle::Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let d = hidden / heads;
        match &self.linear {
            Fused::One(linear) => linear.forward(x)?.reshape((rows, heads, 3, d)),
            Fused::Several(linears) => {
                let mut parts = Vec::with_capacity(3);
                for (index, linear) in linears.iter().enumerate() {
                    let y = linear.forward(x)?;
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
    /// The padded length of a row of logits.
    length: usize,
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
        let length = row_length(vocabulary);
        let decoder = padded(decoder, length).map_err(arithmetic)?;
        let words = match (&decoder, head_name) {
            (Linear::Full { weight, .. }, None) => weight.clone(),
            _ => words,
        };
        let loaded = Self {
            transform: loader.linear(&format!("{prefix}.dense"), hidden, hidden)?,
            activation: text.hidden_act,
            norm: full.layer_norm(&format!("{prefix}.LayerNorm"), hidden, text.layer_norm_eps)?,
            decoder,
            length,
        };
        Ok((loaded, words))
    }

    fn forward(&self, x: &Tensor) -> candle::Result<Tensor> {
        let x = self.activation.forward(&self.transform.forward(x)?)?.to_dtype(DType::F32)?;
        let logits = self.decoder.forward(&self.norm.forward(&x)?)?;
        let (rows, width) = logits.dims2()?;
        if width == self.length {
            return Ok(logits);
        }
        let rest = Tensor::full(PADDING, (rows, self.length - width), logits.device())?;
        Tensor::cat(&[&logits, &rest], 1)
    }
}

/// The layer with `length` outputs, the additional ones [`PADDING`]; a quantised layer stays as it
/// is.
fn padded(linear: Linear, length: usize) -> candle::Result<Linear> {
    let Linear::Full { weight, bias } = linear else { return Ok(linear) };
    let (vocabulary, hidden) = weight.dims2()?;
    if vocabulary == length {
        return Ok(Linear::Full { weight, bias });
    }
    let device = weight.device();
    let zeros = Tensor::zeros((length - vocabulary, hidden), DType::F32, device)?;
    let padding = Tensor::full(PADDING, length - vocabulary, device)?;
    Ok(Linear::Full {
        weight: Tensor::cat(&[&weight, &zeros], 0)?,
        bias: Tensor::cat(&[&bias, &padding], 0)?,
    })
}
