//! How the tensors of a BLIP checkpoint are written into a GGUF file.
//!
//! The names are those of the checkpoint. The matrices of linear layers are quantised, and so is
//! the word embedding, which a tied model multiplies by as well. Everything else stays in f32, as
//! candle's `tensor-tools` writes it: norms, biases, the class token, positions and the patch
//! embedding are small, and readers dequantise them anyway.
//!
//! Source: `quantized_blip` and `quantized_blip_text` in candle-transformers, which read such
//! files.

use std::collections::BTreeMap;

use super::config::BlipConfig;
use super::loader::{DECODER, WORDS};
use super::weights::{GgufTensor, TensorType, Weights};
use cutline_error::{Error, Result};

const BIAS: &str = "text_decoder.cls.predictions.bias";
const DECODER_BIAS: &str = "text_decoder.cls.predictions.decoder.bias";

/// The contents of a GGUF file that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizationPlan {
    /// The tensors, sorted by name.
    pub tensors: Vec<GgufTensor>,
    /// Counts the matrices whose rows do not fill the blocks of the wanted type, by the type that
    /// they get instead and their name, with `*` for the number of the layer.
    pub substitutes: BTreeMap<(TensorType, String), usize>,
}

impl QuantizationPlan {
    /// Plans a file in which the matrices are of type `kind`.
    ///
    /// # Errors
    /// The weights are quantised already, and `kind` would quantise them again; or the model is a BLIP-2.
    pub fn new(config: &BlipConfig, weights: &Weights, kind: TensorType) -> Result<Self> {
        if config.query.is_some() {
            return Err(Error::model(format!(
                "{} cannot be written as GGUF; load it as it is, with PRECISION=int8",
                config.family.architecture()
            )));
        }
        if weights.is_quantized() && kind.is_quantized() {
            return Err(Error::model(format!(
                "{} is quantised already, and quantising it again would lose more; start from the \
                 original weights, or choose --type f16 or f32",
                weights.files_in_words(),
            )));
        }
        let mut plan = Self { tensors: Vec::new(), substitutes: BTreeMap::new() };
        for (name, source) in names(config, weights) {
            let shape = weights.shape(source).unwrap_or_default();
            let kind = match shape {
                [_, width] if is_multiplied(name) => plan.of_matrix(name, *width, kind),
                _ => TensorType::F32,
            };
            plan.tensors.push(GgufTensor { name: name.into(), source: source.into(), kind });
        }
        Ok(plan)
    }

    /// How many tensors are of each type, in the order of [`TensorType::ALL`].
    #[must_use]
    pub fn counts(&self) -> Vec<(TensorType, usize)> {
        let count = |kind| self.tensors.iter().filter(|tensor| tensor.kind == kind).count();
        let all = TensorType::ALL.into_iter().map(|kind| (kind, count(kind)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    fn of_matrix(&mut self, name: &str, width: usize, wanted: TensorType) -> TensorType {
        let kind = wanted.for_rows(width);
        if kind != wanted {
            *self.substitutes.entry((kind, pattern(name))).or_default() += 1;
        }
        kind
    }
}

/// The names to write, and the tensors that they stand for. Integers are left out: these are the
/// `position_ids` of old checkpoints, which nothing reads.
///
/// candle's reader looks up the head's matrix and its shared bias by name even if the checkpoint
/// ties them and holds each only once, so both names are written.
fn names<'a>(config: &BlipConfig, weights: &'a Weights) -> BTreeMap<&'a str, &'a str> {
    let mut names: BTreeMap<_, _> =
        weights.names().filter(|name| weights.is_float(name)).map(|name| (name, name)).collect();
    let mut add = |name: &'static str, source: &'static str| {
        if names.contains_key(source) {
            names.entry(name).or_insert(source);
        }
    };
    if config.tie_word_embeddings {
        add(DECODER, WORDS);
        add(WORDS, DECODER);
    }
    add(BIAS, DECODER_BIAS);
    names
}

/// Whether the model multiplies by the matrix of this name in less precision. Text positions are only
/// looked up, and the heads that compare images with texts are small.
fn is_multiplied(name: &str) -> bool {
    const HEADS: [&str; 3] = ["vision_proj.", "text_proj.", "itm_head."];
    name.ends_with(".weight")
        && !name.ends_with("position_embeddings.weight")
        && !HEADS.iter().any(|head| name.starts_with(head))
}

/// The name with `*` in place of its number.
fn pattern(name: &str) -> String {
    let part =
        |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "*" } else { part }.into();
    name.split('.').map(part).collect::<Vec<String>>().join(".")
}
