//! The part of a BLIP checkpoint's `config.json` that is needed. Missing fields have the
//! defaults of transformers' `BlipConfig`, `BlipVisionConfig` and `BlipTextConfig` (5.23).

mod blip2;

use serde::Deserialize;

pub(crate) use self::blip2::POSITION_OFFSET;
pub use self::blip2::QueryConfig;
use crate::Family;
use cutline_error::{Error, Result};

// The largest numbers that are believed, far above those of any known model. The weights are compared
// with them, but some are used before that, as numbers of layers or of positions.
const MAX_WIDTH: usize = 1 << 16;
const MAX_LAYERS: usize = 1 << 10;
const MAX_POSITIONS: usize = 1 << 16;
const MAX_VOCABULARY: usize = 1 << 24;
/// Pixels along a side of an image.
const MAX_SIDE: usize = 1 << 13;
/// Patches along a side of an image: attention takes the fourth power of it.
const MAX_GRID: usize = 1 << 8;

/// Shapes and constants of a BLIP model.
#[derive(Debug, Clone, PartialEq)]
pub struct BlipConfig {
    /// Which model it is.
    pub family: Family,
    /// The image encoder.
    pub vision: VisionConfig,
    /// The text decoder and the text encoder, whichever there are.
    pub text: TextConfig,
    /// Whether the language-model head shares its matrix with the word embedding.
    pub tie_word_embeddings: bool,
    /// Numbers of an embedding of [`Family::Retrieval`].
    pub image_text_hidden_size: usize,
    /// What [`Family::Blip2`] has between the image encoder and the text decoder.
    pub query: Option<QueryConfig>,
}

/// Shapes and constants of the vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads per layer; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Side in pixels of the square images that the position embedding was trained for.
    pub image_size: usize,
    /// Side of a square patch in pixels; divides `image_size`.
    pub patch_size: usize,
    /// The function between the feed-forward layers.
    pub hidden_act: Activation,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f64,
}

/// Shapes and constants of the text decoder, and of the text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads per layer; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Rows of the position embedding: the longest sequence, first token included.
    pub max_position_embeddings: usize,
    /// The function between the feed-forward layers and in the head's transform.
    pub hidden_act: Activation,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f64,
    /// The first token of every caption, `[DEC]`, or `</s>` of OPT.
    pub bos_token_id: u32,
    /// The token that ends a caption, `[SEP]`, or a line break of OPT.
    pub sep_token_id: u32,
}

/// The non-linearities that `hidden_act` can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Exact GELU, with the error function.
    Gelu,
    /// GELU approximated with tanh (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
}

impl BlipConfig {
    /// Reads and checks a checkpoint's `config.json`.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](cutline_error::ErrorKind::Model): invalid JSON, another architecture
    /// than those of [`Family`], or impossible shapes.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let unreadable = |e| {
            Error::model(format!("config.json cannot be read as a BLIP configuration: {e}"))
                .with_source(e)
        };
        let kind: RawKind = serde_json::from_slice(json).map_err(unreadable)?;
        let family = Family::named(kind.model_type.as_deref(), kind.architectures.as_deref())?;
        if family == Family::Blip2 {
            return blip2::from_json(json);
        }
        let raw: RawConfig = serde_json::from_slice(json).map_err(unreadable)?;
        within("the top level", "image_text_hidden_size", raw.image_text_hidden_size, MAX_WIDTH)?;
        let tie_word_embeddings = raw.tie_word_embeddings || raw.text_config.tie_word_embeddings;
        let config = Self {
            family,
            image_text_hidden_size: raw.image_text_hidden_size,
            vision: raw.vision_config.resolve()?,
            text: raw.text_config.resolve()?,
            tie_word_embeddings,
            query: None,
        };
        config.check_widths()?;
        Ok(config)
    }

    /// The decoder that answers questions reads the states of the text encoder, but transformers gives it
    /// keys and values for states as wide as the vision tower's, and fails if these differ.
    fn check_widths(&self) -> Result<()> {
        let (image, text) = (self.vision.hidden_size, self.text.hidden_size);
        if self.family == Family::QuestionAnswering && image != text {
            return Err(Error::model(format!(
                "config.json: hidden_size is {image} in vision_config and {text} in text_config, but \
                 {} needs the same; fetch the file again",
                self.family.architecture()
            )));
        }
        Ok(())
    }
}

impl VisionConfig {
    /// Width of one attention head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Patches along one side of the images that the model was trained on.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Checks that `pixels` are planes `3 × height × width` in whole patches.
    pub(crate) fn check_image(&self, pixels: &[f32], width: usize, height: usize) -> Result<()> {
        let patch = self.patch_size;
        let fits = |side: usize| side > 0 && side.is_multiple_of(patch);
        if !fits(width) || !fits(height) || pixels.len() != 3 * width * height {
            return Err(Error::internal(format!(
                "{} pixel values are not a 3 × {height} × {width} image in patches of {patch}",
                pixels.len()
            )));
        }
        Ok(())
    }
}

impl TextConfig {
    /// Width of one attention head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Checks that all tokens are in the vocabulary.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](cutline_error::ErrorKind::Internal): one of them is not.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let known = self.vocab_size;
        match tokens.iter().find(|&&token| token as usize >= known) {
            None => Ok(()),
            Some(token) => Err(Error::internal(format!("token {token} is not in 0..{known}"))),
        }
    }
}

/// What says which model it is.
#[derive(Deserialize)]
struct RawKind {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    vision_config: RawVision,
    #[serde(default)]
    text_config: RawText,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "default_embedding")]
    image_text_hidden_size: usize,
}

#[derive(Deserialize)]
#[serde(default)]
struct RawVision {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: Side,
    patch_size: Side,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for RawVision {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: Side::Square(384),
            patch_size: Side::Square(16),
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl RawVision {
    fn resolve(self) -> Result<VisionConfig> {
        let section = "vision_config";
        within(section, "hidden_size", self.hidden_size, MAX_WIDTH)?;
        heads_divide(section, self.hidden_size, self.num_attention_heads)?;
        within(section, "intermediate_size", self.intermediate_size, MAX_WIDTH)?;
        within(section, "num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        small_number(section, "layer_norm_eps", self.layer_norm_eps)?;
        let image_size = self.image_size.square("image_size")?;
        let patch_size = self.patch_size.square("patch_size")?;
        within(section, "image_size", image_size, MAX_SIDE)?;
        if !image_size.is_multiple_of(patch_size) {
            return Err(Error::model(format!(
                "config.json, vision_config: image_size {image_size} is not a multiple of \
                 patch_size {patch_size}"
            )));
        }
        if image_size / patch_size > MAX_GRID {
            return Err(Error::model(format!(
                "config.json, vision_config: image_size {image_size} has more than {MAX_GRID} patches \
                 of patch_size {patch_size} along a side; fetch the file again"
            )));
        }
        Ok(VisionConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            image_size,
            patch_size,
            hidden_act: activation(section, &self.hidden_act)?,
            layer_norm_eps: self.layer_norm_eps,
        })
    }
}

/// transformers allows a number or a pair.
#[derive(Deserialize)]
#[serde(untagged)]
enum Side {
    Square(usize),
    Pair([usize; 2]),
}

impl Side {
    fn square(&self, field: &str) -> Result<usize> {
        match *self {
            Self::Square(side) | Self::Pair([side, _]) if side == 0 => Err(Error::model(format!(
                "config.json, vision_config: {field} must be greater than 0"
            ))),
            Self::Square(side) => Ok(side),
            Self::Pair([a, b]) if a == b => Ok(a),
            Self::Pair([a, b]) => Err(Error::model(format!(
                "config.json, vision_config: {field} is {a} × {b}, but only squares are supported"
            ))),
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct RawText {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    bos_token_id: Option<u32>,
    sep_token_id: Option<u32>,
    is_decoder: bool,
    tie_word_embeddings: bool,
}

impl Default for RawText {
    fn default() -> Self {
        Self {
            vocab_size: 30524,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 512,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            bos_token_id: Some(30522),
            sep_token_id: Some(102),
            is_decoder: true,
            tie_word_embeddings: true,
        }
    }
}

impl RawText {
    fn resolve(self) -> Result<TextConfig> {
        let section = "text_config";
        within(section, "hidden_size", self.hidden_size, MAX_WIDTH)?;
        heads_divide(section, self.hidden_size, self.num_attention_heads)?;
        within(section, "vocab_size", self.vocab_size, MAX_VOCABULARY)?;
        within(section, "intermediate_size", self.intermediate_size, MAX_WIDTH)?;
        within(section, "num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        within(section, "max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS)?;
        small_number(section, "layer_norm_eps", self.layer_norm_eps)?;
        if self.max_position_embeddings < 2 {
            return Err(Error::model(
                "config.json, text_config: max_position_embeddings must be at least 2",
            ));
        }
        if !self.is_decoder {
            return Err(Error::model(
                "config.json, text_config: is_decoder is false, so the model has no \
                 cross-attention and cannot see images",
            ));
        }
        Ok(TextConfig {
            bos_token_id: self.token("bos_token_id", self.bos_token_id)?,
            sep_token_id: self.token("sep_token_id", self.sep_token_id)?,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            max_position_embeddings: self.max_position_embeddings,
            hidden_act: activation(section, &self.hidden_act)?,
            layer_norm_eps: self.layer_norm_eps,
        })
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

const fn yes() -> bool {
    true
}

const fn default_embedding() -> usize {
    256
}

fn within(section: &str, field: &str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::model(format!(
        "config.json, {section}: {field} is {value}, not a number from 1 to {most}; fetch the file again"
    )))
}

fn small_number(section: &str, field: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::model(format!(
        "config.json, {section}: {field} is {value}, not a number from 0 to 1; fetch the file again"
    )))
}

fn heads_divide(section: &str, hidden: usize, heads: usize) -> Result<()> {
    if hidden > 0 && heads > 0 && hidden.is_multiple_of(heads) {
        return Ok(());
    }
    Err(Error::model(format!(
        "config.json, {section}: hidden_size {hidden} is not a multiple of num_attention_heads \
         {heads}"
    )))
}

fn activation(section: &str, name: &str) -> Result<Activation> {
    match name {
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" => Ok(Activation::GeluTanh),
        "quick_gelu" => Ok(Activation::QuickGelu),
        "relu" => Ok(Activation::Relu),
        _ => Err(Error::model(format!(
            "config.json, {section}: hidden_act {name:?} is not supported; supported are gelu, \
             gelu_new, gelu_pytorch_tanh, quick_gelu and relu"
        ))),
    }
}

#[cfg(test)]
mod tests;
