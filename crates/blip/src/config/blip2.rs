//! `config.json` of BLIP-2. Missing fields have the defaults of transformers' `Blip2Config`,
//! `Blip2VisionConfig`, `Blip2QFormerConfig` and `OPTConfig` (5.23).

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Activation, BlipConfig, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, RawVision,
    TextConfig, VisionConfig, activation, heads_divide, small_number, within,
};
use crate::Family;
use cutline_error::{Error, Result};

/// OPT's position embedding begins with rows that stand for nothing.
pub(crate) const POSITION_OFFSET: usize = 2;

/// The most tokens of prompt and caption together, as for BLIP. OPT could read four times as many, but
/// every caption would have to reserve the memory for them.
const MOST_TOKENS: usize = 512;

/// Every `layer_norm_eps` of OPT.
const OPT_EPS: f64 = 1e-5;

/// Shapes and constants of a Q-Former: a few queries that read an image for a language model.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryConfig {
    /// Rows that the language model gets for an image.
    pub tokens: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads per layer; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// The function between the feed-forward layers.
    pub hidden_act: Activation,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f64,
    /// Every so many layers, from the first on, attend to the image.
    pub cross_attention_frequency: usize,
    /// The token that stands for each of the rows where tokens are counted.
    pub image_token: u32,
    /// Positions of the language model, those of the image included.
    pub positions: usize,
}

impl QueryConfig {
    /// Width of one attention head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

#[derive(Deserialize)]
struct RawBlip2 {
    #[serde(default)]
    vision_config: Map<String, Value>,
    #[serde(default)]
    qformer_config: RawQueries,
    #[serde(default)]
    text_config: Map<String, Value>,
    #[serde(default = "default_queries")]
    num_query_tokens: usize,
    image_token_index: Option<u32>,
}

#[derive(Deserialize)]
#[serde(default)]
struct RawQueries {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    cross_attention_frequency: usize,
}

impl Default for RawQueries {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            cross_attention_frequency: 2,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct RawOpt {
    vocab_size: usize,
    hidden_size: usize,
    ffn_dim: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    activation_function: String,
    word_embed_proj_dim: Option<usize>,
    do_layer_norm_before: bool,
    enable_bias: bool,
    layer_norm_elementwise_affine: bool,
    #[serde(rename = "_remove_final_layer_norm")]
    remove_final_layer_norm: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
}

impl Default for RawOpt {
    fn default() -> Self {
        Self {
            vocab_size: 50272,
            hidden_size: 768,
            ffn_dim: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 2048,
            activation_function: "relu".to_owned(),
            word_embed_proj_dim: None,
            do_layer_norm_before: true,
            enable_bias: true,
            layer_norm_elementwise_affine: true,
            remove_final_layer_norm: false,
            bos_token_id: Some(2),
            eos_token_id: Some(2),
        }
    }
}

/// Reads and checks a configuration of [`Family::Blip2`].
pub(super) fn from_json(json: &[u8]) -> Result<BlipConfig> {
    let raw: RawBlip2 = serde_json::from_slice(json).map_err(unreadable)?;
    let vision = vision(raw.vision_config)?;
    let opt = language_model(raw.text_config)?;
    let (text, positions) = opt.resolve(raw.num_query_tokens)?;
    let image_token = raw
        .image_token_index
        .filter(|&token| (token as usize) < text.vocab_size)
        .ok_or_else(|| {
            Error::model(format!(
                "config.json: image_token_index must be one of the {} tokens of the vocabulary; fetch \
                 the checkpoint again, in its newest revision",
                text.vocab_size
            ))
        })?;
    let query = raw.qformer_config.resolve(raw.num_query_tokens, image_token, positions)?;
    Ok(BlipConfig {
        family: Family::Blip2,
        vision,
        text,
        tie_word_embeddings: true,
        image_text_hidden_size: 0,
        query: Some(query),
    })
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::model(format!("config.json cannot be read as a BLIP-2 configuration: {error}"))
        .with_source(error)
}

fn unsupported(detail: &str) -> Error {
    Error::model(format!(
        "config.json, {detail}; choose a checkpoint such as {}",
        Family::Blip2.checkpoint()
    ))
}

/// The fields are those of BLIP, with other defaults.
fn vision(mut given: Map<String, Value>) -> Result<VisionConfig> {
    if given.get("qkv_bias") == Some(&Value::Bool(false)) {
        return Err(unsupported("vision_config: qkv_bias is false, which is not supported"));
    }
    for (name, value) in [
        ("hidden_size", json!(1408)),
        ("intermediate_size", json!(6144)),
        ("num_hidden_layers", json!(39)),
        ("num_attention_heads", json!(16)),
        ("image_size", json!(224)),
        ("patch_size", json!(14)),
        ("layer_norm_eps", json!(1e-6)),
    ] {
        given.entry(name).or_insert(value);
    }
    let raw: RawVision = serde_json::from_value(Value::Object(given)).map_err(unreadable)?;
    raw.resolve()
}

fn language_model(given: Map<String, Value>) -> Result<RawOpt> {
    match given.get("model_type").map_or(Some("opt"), Value::as_str) {
        Some("opt") => serde_json::from_value(Value::Object(given)).map_err(unreadable),
        other => Err(unsupported(&format!(
            "text_config: model_type is {:?}, but only BLIP-2 with a language model of type \"opt\" is \
             supported",
            other.unwrap_or("<not a text>")
        ))),
    }
}

impl RawQueries {
    fn resolve(self, tokens: usize, image_token: u32, positions: usize) -> Result<QueryConfig> {
        let section = "qformer_config";
        within(section, "hidden_size", self.hidden_size, MAX_WIDTH)?;
        heads_divide(section, self.hidden_size, self.num_attention_heads)?;
        within(section, "intermediate_size", self.intermediate_size, MAX_WIDTH)?;
        within(section, "num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        let frequency = self.cross_attention_frequency;
        within(section, "cross_attention_frequency", frequency, MAX_LAYERS)?;
        small_number(section, "layer_norm_eps", self.layer_norm_eps)?;
        Ok(QueryConfig {
            tokens,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            hidden_act: activation(section, &self.hidden_act)?,
            layer_norm_eps: self.layer_norm_eps,
            cross_attention_frequency: frequency,
            image_token,
            positions,
        })
    }
}

impl RawOpt {
    /// The configuration, whose positions are those after the `queries` of the image, and all positions.
    fn resolve(self, queries: usize) -> Result<(TextConfig, usize)> {
        let section = "text_config";
        within(section, "hidden_size", self.hidden_size, MAX_WIDTH)?;
        heads_divide(section, self.hidden_size, self.num_attention_heads)?;
        within(section, "vocab_size", self.vocab_size, MAX_VOCABULARY)?;
        within(section, "ffn_dim", self.ffn_dim, MAX_WIDTH)?;
        within(section, "num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        within(section, "max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS)?;
        within("the top level", "num_query_tokens", queries, MAX_POSITIONS)?;
        self.check_kind()?;
        let left = self.max_position_embeddings.saturating_sub(queries);
        if left < 2 {
            return Err(Error::model(format!(
                "config.json, text_config: max_position_embeddings is {}, but an image takes {queries} \
                 of them, and a caption at least 2; fetch the file again",
                self.max_position_embeddings
            )));
        }
        let text = TextConfig {
            bos_token_id: self.token("bos_token_id", self.bos_token_id)?,
            sep_token_id: self.token("eos_token_id", self.eos_token_id)?,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.ffn_dim,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            max_position_embeddings: left.min(MOST_TOKENS),
            hidden_act: activation(section, &self.activation_function)?,
            layer_norm_eps: OPT_EPS,
        };
        Ok((text, self.max_position_embeddings))
    }

    /// OPT with 350 million parameters, and what Galactica made of it, are other models.
    fn check_kind(&self) -> Result<()> {
        let projected = self.word_embed_proj_dim.is_some_and(|width| width != self.hidden_size);
        let others = [
            (projected, "word_embed_proj_dim differs from hidden_size"),
            (!self.do_layer_norm_before, "do_layer_norm_before is false"),
            (!self.enable_bias, "enable_bias is false"),
            (!self.layer_norm_elementwise_affine, "layer_norm_elementwise_affine is false"),
            (self.remove_final_layer_norm, "_remove_final_layer_norm is true"),
        ];
        match others.into_iter().find(|(is, _)| *is) {
            None => Ok(()),
            Some((_, what)) => {
                Err(unsupported(&format!("text_config: {what}, which is not supported")))
            }
        }
    }

    fn token(&self, field: &str, id: Option<u32>) -> Result<u32> {
        id.filter(|&id| (id as usize) < self.vocab_size).ok_or_else(|| {
            Error::model(format!(
                "config.json, text_config: {field} must be one of the {} tokens of the vocabulary",
                self.vocab_size
            ))
        })
    }
}

const fn default_queries() -> usize {
    32
}
