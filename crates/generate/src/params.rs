//! What a caller may ask of decoding. Names, defaults and meanings are those of
//! `GenerationConfig` in Hugging Face transformers.

use cutline_error::{Error, Result};

/// Most beams, and most captions, that one request may ask for.
pub const MAX_BEAMS: usize = 10;

/// When beam search may stop (`early_stopping` in transformers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EarlyStopping {
    /// Stop when no running beam can, by the usual heuristic, beat the worst finished one.
    #[default]
    Heuristic,
    /// Stop as soon as `num_beams` hypotheses are finished.
    Always,
    /// Stop only when no running beam can ever beat the worst finished one.
    Never,
}

/// Parameters of decoding, already defaulted.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationParams {
    /// Most tokens that are generated behind the prompt, `[SEP]` included.
    pub max_new_tokens: usize,
    /// Fewest tokens before `[SEP]` is allowed.
    pub min_new_tokens: usize,
    /// Beams; 1 is greedy decoding or plain sampling.
    pub num_beams: usize,
    /// How many captions are returned.
    pub num_return_sequences: usize,
    /// Exponent of the length that a finished beam's score is divided by.
    pub length_penalty: f32,
    /// When beam search stops.
    pub early_stopping: EarlyStopping,
    /// Divides positive and multiplies negative logits of tokens already present; 1.0 is off.
    pub repetition_penalty: f32,
    /// No n-gram of this size occurs twice; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// Sample instead of taking the best token.
    pub do_sample: bool,
    /// Softmax temperature of sampling, > 0.
    pub temperature: f32,
    /// Sample among the `top_k` best tokens; 0 is off.
    pub top_k: usize,
    /// Sample among the fewest tokens whose probabilities reach `top_p`; 1.0 is off.
    pub top_p: f32,
    /// Seed of sampling; `None` draws a fresh one.
    pub seed: Option<u64>,
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
        }
    }
}

impl GenerationParams {
    /// The same with the defaults for what is not read: equal ones decode equally.
    #[must_use]
    pub fn canonical(&self) -> Self {
        if self.do_sample {
            return self.clone();
        }
        let Self { temperature, top_k, top_p, seed, .. } = Self::default();
        Self { temperature, top_k, top_p, seed, ..self.clone() }
    }

    /// Rows of the decoding batch that this request occupies.
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
            "num_captions must not be greater than num_beams when beams are searched",
        )?;
        range(
            self.num_beams > 1 || self.do_sample || self.num_return_sequences == 1,
            "num_captions",
            "more than one caption needs num_beams of at least as many, or do_sample=true",
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
        )
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model wrote `[SEP]`.
    Stop,
    /// `max_new_tokens`, or the end of the position table, was reached.
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

/// One finished sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Prompt and generated tokens, first token and (if it was written) `[SEP]` included.
    pub ids: Vec<u32>,
    /// How many of `ids` were generated.
    pub generated: usize,
    /// Geometric mean of the model's probabilities (before any processor or temperature) of the
    /// generated tokens, 0–1.
    pub confidence: f32,
    /// Beam search's length-normalised log-probability; `None` without beams.
    pub score: Option<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}
