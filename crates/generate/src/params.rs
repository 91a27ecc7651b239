//! Parameters of decoding. Names, defaults and meanings are those of `GenerationConfig` in Hugging
//! Face transformers.

use std::sync::Arc;

use crate::ClosedSet;
use cutline_error::{Error, Result};

/// The maximum of beams, and of captions, of one request.
pub const MAX_BEAMS: usize = 10;

/// The maximum of probable tokens that are reported for each generated one.
pub const MAX_ALTERNATIVES: usize = 20;

/// When beam search may stop (`early_stopping` in transformers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EarlyStopping {
    /// Stop when no running beam is likely to beat the worst finished one.
    #[default]
    Heuristic,
    /// Stop as soon as `num_beams` hypotheses are finished.
    Always,
    /// Stop only when no running beam can ever beat the worst finished one.
    Never,
}

/// Parameters of decoding, with defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationParams {
    /// The maximum of tokens generated after the prompt, `[SEP]` included.
    pub max_new_tokens: usize,
    /// The minimum of generated tokens before `[SEP]` is allowed.
    pub min_new_tokens: usize,
    /// Beams; 1 means greedy decoding or plain sampling.
    pub num_beams: usize,
    /// How many captions are returned.
    pub num_return_sequences: usize,
    /// The score of a finished beam is divided by its length to the power of this.
    pub length_penalty: f32,
    /// When beam search stops.
    pub early_stopping: EarlyStopping,
    /// Divides positive and multiplies negative logits of tokens already present; 1.0 disables it.
    pub repetition_penalty: f32,
    /// No n-gram of this size occurs twice; 0 disables it.
    pub no_repeat_ngram_size: usize,
    /// Sample instead of taking the most probable token.
    pub do_sample: bool,
    /// Softmax temperature of sampling, > 0.
    pub temperature: f32,
    /// Sample from the `top_k` most probable tokens; 0 disables it.
    pub top_k: usize,
    /// Sample from the smallest set of tokens whose probabilities add up to `top_p`; 1.0 disables it.
    pub top_p: f32,
    /// Seed of sampling; `None` means a random one.
    pub seed: Option<u64>,
    /// How many of the most probable tokens are reported for each generated one; 0 disables it.
    pub alternatives: usize,
}

impl Default for GenerationParams {
    fn default() -> Self {
        Self {
            max_new_tokens: 20,
            min_new_tokens: 0,
            num_beams: 1,
            num_return_sequences: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            seed: None,
            alternatives: 0,
        }
    }
}

impl GenerationParams {
    /// The same parameters, with defaults for those that have no effect: requests with equal canonical
    /// parameters have equal results.
    #[must_use]
    pub fn canonical(&self) -> Self {
        if self.do_sample {
            return self.clone();
        }
        let Self { temperature, top_k, top_p, seed, .. } = Self::default();
        Self { temperature, top_k, top_p, seed, ..self.clone() }
    }

    /// Rows that this request occupies in the batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        if self.num_beams > 1 { self.num_beams } else { self.num_return_sequences }
    }

    /// Checks ranges and contradictions.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming the field.
    pub fn validate(&self) -> Result<()> {
        let range = |ok: bool, field: &'static str, detail: &'static str| {
            if ok { Ok(()) } else { Err(Error::parameter(field, detail)) }
        };
        range(self.max_new_tokens >= 1, "max_new_tokens", "max_new_tokens must be at least 1")?;
        range(
            self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            "min_new_tokens must not be greater than max_new_tokens",
        )?;
        range(
            (1..=MAX_BEAMS).contains(&self.num_beams),
            "num_beams",
            "num_beams must be between 1 and 10",
        )?;
        range(
            (1..=MAX_BEAMS).contains(&self.num_return_sequences),
            "num_captions",
            "num_captions must be between 1 and 10",
        )?;
        range(
            self.num_beams == 1 || self.num_return_sequences <= self.num_beams,
            "num_captions",
            "in beam search, num_captions must not be greater than num_beams",
        )?;
        range(
            self.num_beams > 1 || self.do_sample || self.num_return_sequences == 1,
            "num_captions",
            "num_captions greater than 1 needs at least as many num_beams, or do_sample=true",
        )?;
        let positive = |v: f32| v.is_finite() && v > 0.0;
        range(
            positive(self.repetition_penalty),
            "repetition_penalty",
            "repetition_penalty must be a number greater than 0",
        )?;
        range(
            self.length_penalty.is_finite(),
            "length_penalty",
            "length_penalty must be a finite number",
        )?;
        range(
            positive(self.temperature),
            "temperature",
            "temperature must be a number greater than 0; for the best caption set do_sample=false",
        )?;
        range(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p",
            "top_p must be greater than 0 and at most 1",
        )?;
        range(
            self.alternatives <= MAX_ALTERNATIVES,
            "top_logprobs",
            "top_logprobs must be between 0 and 20",
        )
    }
}

/// What to do with the model's probabilities.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Write texts.
    Write(GenerationParams),
    /// Rank given texts, see [`Decoder::rank`](crate::Decoder::rank).
    Rank(Arc<ClosedSet>),
}

impl From<GenerationParams> for Task {
    fn from(params: GenerationParams) -> Self {
        Self::Write(params)
    }
}

impl Task {
    /// Rows that it occupies in the batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Write(params) => params.rows(),
            Self::Rank(set) => set.rows(),
        }
    }

    /// The fewest tokens that follow the prompt, before the one that ends the text.
    #[must_use]
    pub fn min_new_tokens(&self) -> usize {
        match self {
            Self::Write(params) => params.min_new_tokens,
            Self::Rank(_) => 0,
        }
    }

    /// The most tokens that follow the prompt.
    #[must_use]
    pub fn max_new_tokens(&self) -> usize {
        match self {
            Self::Write(params) => params.max_new_tokens,
            Self::Rank(set) => set.longest(),
        }
    }

    /// [`GenerationParams::validate`]; a set of texts has been checked when it was made.
    ///
    /// # Errors
    /// As [`GenerationParams::validate`].
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Write(params) => params.validate(),
            Self::Rank(_) => Ok(()),
        }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model generated `[SEP]`.
    Stop,
    /// The sequence reached `max_new_tokens` or the last position of the model.
    Length,
}

impl FinishReason {
    /// The name in the HTTP contract.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// The most probable tokens in the place of one, the most probable first, with the logarithms of the
/// probabilities that the model gave to them, before any processor or temperature.
pub type Alternatives = Arc<[(u32, f32)]>;

/// One finished sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Prompt and generated tokens, including the first token and, if it was generated, `[SEP]`.
    pub ids: Vec<u32>,
    /// How many of `ids` were generated.
    pub generated: usize,
    /// The geometric mean of the probabilities that the model gave to the generated tokens, before
    /// any processor or temperature, 0–1.
    pub confidence: f32,
    /// The logarithms of these probabilities, one for each generated token.
    pub log_probabilities: Vec<f32>,
    /// The most probable tokens for each generated one; empty if none are
    /// [wanted](GenerationParams::alternatives).
    pub alternatives: Vec<Alternatives>,
    /// The length-normalised log-probability in beam search; `None` without beams.
    pub score: Option<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}
