//! Which tensors of a BLIP checkpoint are written how into a GGUF file.
//!
//! The names are those of the checkpoint. Quantised are the matrices of linear layers and the word
//! embedding, which a tied model multiplies by as well. Everything else stays in f32, as candle's
//! `tensor-tools` writes it: norms, biases, the class token, positions and the patch embedding are
//! small, and readers dequantise them anyway.
//!
//! Source: `quantized_blip` and `quantized_blip_text` in candle-transformers, which read such files.

use std::collections::BTreeMap;

use super::config::BlipConfig;
use super::text::{DECODER, WORDS};
use super::weights::{GgufTensor, TensorType, Weights};
use cutline_error::{Error, Result};

const BIAS: &str = "text_decoder.cls.predictions.bias";
const DECODER_BIAS: &str = "text_decoder.cls.predictions.decoder.bias";

/// What a GGUF file of a checkpoint will hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizationPlan {
    /// The tensors, sorted by name.
    pub tensors: Vec<GgufTensor>,
    /// Matrices whose rows do not fill the blocks of the wanted type: the type that they get
    /// instead and their name, with `*` for the number of the layer → how many they are.
    pub substitutes: BTreeMap<(TensorType, String), usize>,
}

impl QuantizationPlan {
    /// Plans a file in which the matrices are of type `kind`.
    ///
    /// # Errors
    /// The weights are quantised already, and `kind` would quantise them a second time.
    pub fn new(config: &BlipConfig, weights: &Weights, kind: TensorType) -> Result<Self> {
        if weights.is_quantized() && kind.is_quantized() {
            return Err(Error::model(format!(
                "{} is quantised already, and every time loses more; start from the original \
                 weights, or choose --type f16 or f32",
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

/// The names to write, and the tensors that they stand for. Integers are left out: GGUF has no
/// place for the position numbers of old checkpoints, and nothing reads them.
///
/// candle's reader asks for the head's matrix and for its shared bias by name, also where the
/// checkpoint ties them and holds each only once; then both names are written.
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

/// Whether a matrix of this name is multiplied by. The positions of the text are looked up only.
fn is_multiplied(name: &str) -> bool {
    name.ends_with(".weight") && !name.ends_with("position_embeddings.weight")
}

/// The name with `*` where it has a number.
fn pattern(name: &str) -> String {
    let part =
        |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "*" } else { part }.into();
    name.split('.').map(part).collect::<Vec<String>>().join(".")
}
