//! The text decoder: BERT with post-norm, causal self-attention and cross-attention to the image.
//!
//! Source: `BlipTextLMHeadModel` in transformers' `modeling_blip_text.py`.

use candle_core::{self as candle, Tensor};

use crate::config::{Activation, TextConfig};
use crate::layers::{LayerNorm, Linear, Loader, attention, merge_heads, split_heads};
use crate::state::{ItemState, KeyValue};
use cutline_error::Result;

/// The word embedding.
pub(crate) const WORDS: &str = "text_decoder.bert.embeddings.word_embeddings.weight";

/// The head's matrix, which may be the same.
pub(crate) const DECODER: &str = "text_decoder.cls.predictions.decoder.weight";

/// Writes token after token from the image's states.
#[derive(Debug)]
pub(crate) struct TextDecoder {
    config: TextConfig,
    /// `[vocabulary, hidden]`.
    words: Tensor,
    /// `[positions, hidden]`.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    head: Head,
}

impl TextDecoder {
    /// Reads `text_decoder.*`; `image_width` is the width of the vision tower's states.
    pub(crate) fn load(
        config: &TextConfig,
        tied: bool,
        image_width: usize,
        loader: &Loader<'_>,
    ) -> Result<Self> {
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let prefix = "text_decoder.bert.embeddings";
        let WordsAndHead { words, source, head } = words_and_head(config, tied, loader)?;
        let head = Head::load(config, loader, head, source, &words)?;
        let positions = loader.tensor(
            &format!("{prefix}.position_embeddings.weight"),
            &[config.max_position_embeddings, hidden],
        )?;
        let layers = (0..config.num_hidden_layers)
            .map(|n| Layer::load(config, image_width, loader, n))
            .collect::<Result<Vec<_>>>()?;
        let norm = loader.layer_norm(&format!("{prefix}.LayerNorm"), hidden, eps)?;
        Ok(Self { config: config.clone(), words, positions, norm, layers, head })
    }

    /// The state for one image, `[image tokens, image width]`, with room for `capacity` tokens:
    /// the cross-attention's keys and values are computed here and never again.
    pub(crate) fn begin(&self, image: &Tensor, capacity: usize) -> candle::Result<ItemState> {
        let cross = self
            .layers
            .iter()
            .map(|layer| layer.cross_attention.keys_and_values(image))
            .collect::<candle::Result<Vec<_>>>()?;
        ItemState::new(&self.config, cross, capacity, image.dtype(), image.device())
    }

    /// Reads the next `per_row` tokens of every row of every item, at the items' own positions.
    ///
    /// `tokens` and the logits of each row's last token, `[rows, vocabulary]`, lie in the order of
    /// the items and of their rows. The items advance only if everything went well.
    pub(crate) fn read(
        &self,
        items: &mut [&mut ItemState],
        tokens: &[u32],
        per_row: usize,
    ) -> candle::Result<Tensor> {
        let mut x = self.embed(items, tokens, per_row)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &Rows { items, per_row, layer: index })?;
        }
        let (rows, hidden) = x.dims2()?;
        let last = x.reshape((rows / per_row, per_row, hidden))?.narrow(1, per_row - 1, 1)?;
        let counts: Vec<usize> = items.iter().map(|item| item.rows()).collect();
        let logits = self.head.forward(&last.squeeze(1)?.contiguous()?, &counts)?;
        for item in items {
            item.advance(per_row);
        }
        Ok(logits)
    }

    /// Word plus position, normalised: `[rows · per_row, hidden]`.
    fn embed(
        &self,
        items: &[&mut ItemState],
        tokens: &[u32],
        per_row: usize,
    ) -> candle::Result<Tensor> {
        let device = self.words.device();
        let positions: Vec<u32> = items
            .iter()
            .flat_map(|item| {
                let first = item.position();
                (0..item.rows()).flat_map(move |_| (first..first + per_row).map(|p| p as u32))
            })
            .collect();
        let words = self.words.index_select(&Tensor::new(tokens, device)?, 0)?;
        let positions = Tensor::new(positions.as_slice(), device)?;
        self.norm.forward(&(words + self.positions.index_select(&positions, 0)?)?)
    }
}

/// The word embedding, and where the head's matrix is.
pub(crate) struct WordsAndHead {
    /// `[vocabulary, hidden]`.
    pub(crate) words: Tensor,
    /// What the file calls it.
    pub(crate) source: &'static str,
    /// What the file calls the head's own matrix; none if it is the word embedding.
    pub(crate) head: Option<&'static str>,
}

/// As transformers does: with a tied head the file may hold the matrix under either name or both;
/// if both are there and differ, they are not tied, whatever the configuration says.
pub(crate) fn words_and_head(
    config: &TextConfig,
    tied: bool,
    loader: &Loader<'_>,
) -> Result<WordsAndHead> {
    let shape = [config.vocab_size, config.hidden_size];
    let source = if tied && !loader.contains(WORDS) { DECODER } else { WORDS };
    let words = loader.tensor(source, &shape)?;
    let shared = tied
        && (source == DECODER
            || !loader.contains(DECODER)
            || loader.same(&words, DECODER, &shape)?);
    Ok(WordsAndHead { words, source, head: if shared { None } else { Some(DECODER) } })
}

/// What the file calls the head's bias: an untied head has one of its own, a tied one may be stored
/// under either name.
pub(crate) fn decoder_bias(loader: &Loader<'_>, head: Option<&str>) -> String {
    const PREFIX: &str = "text_decoder.cls.predictions";
    let [shared, own] = [format!("{PREFIX}.bias"), format!("{PREFIX}.decoder.bias")];
    let own_first = head.is_some() || !loader.contains(&shared);
    if own_first && loader.contains(&own) { own } else { shared }
}

/// The rows of a batch as one decoder layer sees them.
struct Rows<'a, 'b> {
    items: &'a [&'b mut ItemState],
    per_row: usize,
    layer: usize,
}

impl Rows<'_, '_> {
    /// Rows of the stacked matrix by item.
    fn counts(&self) -> Vec<usize> {
        self.items.iter().map(|item| item.rows() * self.per_row).collect()
    }

    /// Applies `attend` to each item and its part of every matrix, and stacks the results.
    fn each<const N: usize>(
        &self,
        matrices: [&Tensor; N],
        attend: impl Fn(&ItemState, [Tensor; N]) -> candle::Result<Tensor>,
    ) -> candle::Result<Tensor> {
        let mut first = 0;
        let mut parts = Vec::with_capacity(self.items.len());
        for (item, count) in self.items.iter().zip(self.counts()) {
            let mut own = matrices.map(Tensor::clone);
            for matrix in &mut own {
                *matrix = matrix.narrow(0, first, count)?;
            }
            parts.push(attend(item, own)?);
            first += count;
        }
        if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, 0) }
    }
}

/// Self-attention, cross-attention and feed-forward, each normalised after its residual.
#[derive(Debug)]
struct Layer {
    self_attention: Attention,
    cross_attention: Attention,
    intermediate: Linear,
    activation: Activation,
    output: Linear,
    norm: LayerNorm,
}

impl Layer {
    fn load(
        config: &TextConfig,
        image_width: usize,
        loader: &Loader<'_>,
        index: usize,
    ) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let prefix = format!("text_decoder.bert.encoder.layer.{index}");
        let attention =
            |name: &str, from| Attention::load(config, from, loader, &format!("{prefix}.{name}"));
        Ok(Self {
            self_attention: attention("attention", hidden)?,
            cross_attention: attention("crossattention", image_width)?,
            intermediate: loader.linear(&format!("{prefix}.intermediate.dense"), hidden, inner)?,
            activation: config.hidden_act,
            output: loader.linear(&format!("{prefix}.output.dense"), inner, hidden)?,
            norm: loader.layer_norm(
                &format!("{prefix}.output.LayerNorm"),
                hidden,
                config.layer_norm_eps,
            )?,
        })
    }

    fn forward(&self, x: &Tensor, rows: &Rows<'_, '_>) -> candle::Result<Tensor> {
        let counts = rows.counts();
        let context = self.self_attention.over_tokens(x, rows, &counts)?;
        let x = self.self_attention.output(&context, x, &counts)?;
        let context = self.cross_attention.over_image(&x, rows, &counts)?;
        let x = self.cross_attention.output(&context, &x, &counts)?;
        let inner = self.activation.forward(&self.intermediate.forward_items(&x, &counts)?)?;
        self.norm.forward(&(self.output.forward_items(&inner, &counts)? + x)?)
    }
}

/// One attention block with its output projection and norm.
#[derive(Debug)]
struct Attention {
    heads: usize,
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
}

impl Attention {
    /// `from` is the width that keys and values are made of.
    fn load(config: &TextConfig, from: usize, loader: &Loader<'_>, prefix: &str) -> Result<Self> {
        let hidden = config.hidden_size;
        let linear = |name: &str, from| loader.linear(&format!("{prefix}.{name}"), from, hidden);
        Ok(Self {
            heads: config.num_attention_heads,
            query: linear("self.query", hidden)?,
            key: linear("self.key", from)?,
            value: linear("self.value", from)?,
            dense: linear("output.dense", hidden)?,
            norm: loader.layer_norm(
                &format!("{prefix}.output.LayerNorm"),
                hidden,
                config.layer_norm_eps,
            )?,
        })
    }

    /// Of the image's states, `[heads, image tokens, d]`.
    fn keys_and_values(&self, image: &Tensor) -> candle::Result<KeyValue> {
        let heads = |x: Tensor| split_heads(&x, self.heads)?.contiguous();
        Ok(KeyValue {
            keys: heads(self.key.forward(image)?)?,
            values: heads(self.value.forward(image)?)?,
        })
    }

    fn over_tokens(
        &self,
        x: &Tensor,
        rows: &Rows<'_, '_>,
        counts: &[usize],
    ) -> candle::Result<Tensor> {
        let q = self.query.forward_items(x, counts)?;
        let k = self.key.forward_items(x, counts)?;
        let v = self.value.forward_items(x, counts)?;
        let (_, hidden) = x.dims2()?;
        rows.each([&q, &k, &v], |item, parts| {
            let shape = (item.rows(), rows.per_row, self.heads, hidden / self.heads);
            let [q, keys, values] = parts.map(|part| part.reshape(shape)?.transpose(1, 2));
            let new = KeyValue { keys: keys?, values: values? };
            let all = item.append(rows.layer, &new)?;
            let mask = causal_mask(rows.per_row, item.position(), x)?;
            let context = attention(&q?, &all.keys, &all.values, mask.as_ref())?;
            context.transpose(1, 2)?.reshape((item.rows() * rows.per_row, hidden))
        })
    }

    fn over_image(
        &self,
        x: &Tensor,
        rows: &Rows<'_, '_>,
        counts: &[usize],
    ) -> candle::Result<Tensor> {
        let q = self.query.forward_items(x, counts)?;
        rows.each([&q], |item, [q]| {
            let image = item.cross(rows.layer);
            let q = split_heads(&q, self.heads)?;
            merge_heads(&attention(&q, &image.keys, &image.values, None)?)
        })
    }

    fn output(
        &self,
        context: &Tensor,
        residual: &Tensor,
        counts: &[usize],
    ) -> candle::Result<Tensor> {
        self.norm.forward(&(self.dense.forward_items(context, counts)? + residual)?)
    }
}

/// `[tokens, position + tokens]`: zero where a token may look, −∞ at the tokens behind it. A
/// single token sees everything and needs none.
fn causal_mask(tokens: usize, position: usize, like: &Tensor) -> candle::Result<Option<Tensor>> {
    if tokens == 1 {
        return Ok(None);
    }
    let keys = position + tokens;
    let values: Vec<f32> = (0..tokens)
        .flat_map(|query| {
            (0..keys).map(move |key| if key > position + query { f32::NEG_INFINITY } else { 0.0 })
        })
        .collect();
    let mask = Tensor::from_vec(values, (tokens, keys), like.device())?;
    Ok(Some(mask.to_dtype(like.dtype())?))
}

/// Transform and projection to the vocabulary.
#[derive(Debug)]
struct Head {
    transform: Linear,
    activation: Activation,
    norm: LayerNorm,
    decoder: Linear,
}

impl Head {
    /// `weight` names the projection; without one it is the word embedding, which is called
    /// `tied` in the file.
    fn load(
        config: &TextConfig,
        loader: &Loader<'_>,
        weight: Option<&str>,
        tied: &str,
        words: &Tensor,
    ) -> Result<Self> {
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let prefix = "text_decoder.cls.predictions";
        let bias = loader.tensor(&decoder_bias(loader, weight), &[vocabulary])?;
        let decoder = match weight {
            Some(weight) => loader.linear_with_bias(weight, bias, hidden, vocabulary)?,
            None => loader.tied_linear(tied, words, bias)?,
        };
        let transform = format!("{prefix}.transform");
        Ok(Self {
            transform: loader.linear(&format!("{transform}.dense"), hidden, hidden)?,
            activation: config.hidden_act,
            norm: loader.layer_norm(
                &format!("{transform}.LayerNorm"),
                hidden,
                config.layer_norm_eps,
            )?,
            decoder,
        })
    }

    fn forward(&self, x: &Tensor, counts: &[usize]) -> candle::Result<Tensor> {
        let x = self.activation.forward(&self.transform.forward_items(x, counts)?)?;
        self.decoder.forward_items(&self.norm.forward(&x)?, counts)
    }
}
