//! Token generation: greedy decoding, sampling and beam search over plain slices of logits. A
//! [`Decoder`] chooses tokens and decides which row continues which; it does not know the model.
//!
//! If the logits are on a device, greedy decoding and beam search usually need only the few greatest
//! of each row ([`TopLogits`]), and choose the same tokens.
//!
//! The semantics are those of `generate` in Hugging Face transformers 5.23: the order of the logits
//! processors, beam search with its finished beams and length penalty, and the stopping criteria.
//!
//! ```
//! use cutline_generate::{Decoder, DecoderInput, GenerationParams, Progress};
//!
//! // A "model" with four tokens that always continues with the next one; token 3 ends a sequence.
//! let logits = |token: u32| (0..4).map(|t| if t == token + 1 { 5.0 } else { 0.0 }).collect();
//! let input = DecoderInput::new(vec![0], 3, 4, 10);
//! let mut decoder = Decoder::new(&GenerationParams::default(), input);
//! let mut row: Vec<f32> = logits(0);
//! let sequences = loop {
//!     match decoder.advance(&row).progress {
//!         Progress::Continue { tokens, .. } => row = logits(tokens[0]),
//!         Progress::Finished(sequences) => break sequences,
//!     }
//! };
//! assert_eq!(sequences[0].ids, [0, 1, 2, 3]);
//! ```

mod beam;
mod closed_set;
mod math;
pub mod params;
pub mod processors;
mod random;
mod rules;
mod sample;
#[cfg(test)]
mod script;
mod top_logits;

pub use closed_set::{ClosedSet, Entry};
pub use params::{
    Alternatives, EarlyStopping, FinishReason, GenerationParams, MAX_ALTERNATIVES, MAX_BEAMS,
    Sequence, Task,
};
pub use random::fresh_seed;
pub use top_logits::TopLogits;

use std::sync::Arc;

use beam::BeamSearch;
use closed_set::Search;
use sample::Sampler;

/// What decoding needs to know in addition to the parameters.
#[derive(Debug, Clone)]
pub struct DecoderInput {
    /// The tokens to continue, including the first (decoder-start) token.
    pub prompt: Vec<u32>,
    /// The token that ends a sequence.
    pub end: u32,
    /// Logits of a row.
    pub vocabulary: usize,
    /// The longest sequence, prompt included; `max_new_tokens` may end it earlier.
    pub max_length: usize,
    /// The first tokens of the first sequence in greedy decoding and sampling, whatever the logits
    /// are: they have already been streamed to a client.
    pub forced: Vec<u32>,
}

impl DecoderInput {
    /// Without forced tokens; see the fields.
    #[must_use]
    pub fn new(prompt: Vec<u32>, end: u32, vocabulary: usize, max_length: usize) -> Self {
        Self { prompt, end, vocabulary, max_length, forced: Vec::new() }
    }
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The new token of the first sequence, until that ends; `None` in beam search, whose best
    /// sequence is known only at the end.
    pub newest: Option<u32>,
    /// How decoding continues.
    pub progress: Progress,
}

/// How decoding continues.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The model has to compute the next logits.
    Continue {
        /// The token that each row reads next.
        tokens: Vec<u32>,
        /// For each row, the row of the previous step that it continues.
        sources: Vec<usize>,
    },
    /// All sequences have ended: in beam search the best first, in sampling in the order of rows.
    Finished(Vec<Sequence>),
}

/// Decodes one image: a state machine that takes logits.
#[derive(Debug)]
pub struct Decoder(Strategy);

#[derive(Debug)]
enum Strategy {
    Sample(Sampler),
    /// Boxed, since it is several times larger than the other variant.
    Beam(Box<BeamSearch>),
    Rank(Search),
}

impl Decoder {
    /// Greedy decoding, sampling or beam search, depending on the parameters, which must be
    /// [valid](GenerationParams::validate).
    #[must_use]
    pub fn new(params: &GenerationParams, input: DecoderInput) -> Self {
        Self(if params.num_beams > 1 {
            Strategy::Beam(Box::new(BeamSearch::new(params, input)))
        } else {
            Strategy::Sample(Sampler::new(params, input))
        })
    }

    /// Ranks the texts of a set instead of writing one.
    ///
    /// The sequences are the texts whose scores are known, the most probable one first. `score` is the
    /// logarithm of the probability that the model continues the prompt with the text, and not with a
    /// longer one of the set. Texts that cannot be among the best are left out. If the rows did not
    /// suffice to decide about a text, it ends with [`FinishReason::Length`], and its score is an upper
    /// bound.
    #[must_use]
    pub fn rank(set: Arc<ClosedSet>, input: DecoderInput) -> Self {
        Self(Strategy::Rank(Search::new(set, input)))
    }

    /// How many of the greatest logits of each row
    /// [`advance_with_top_logits`](Self::advance_with_top_logits) usually needs; `None` if the choice
    /// depends on all logits, because they are processed or sampled from, or if alternatives are
    /// wanted.
    #[must_use]
    pub fn top_logits_needed(&self) -> Option<usize> {
        match &self.0 {
            Strategy::Sample(sampler) => sampler.top_logits_needed(),
            Strategy::Beam(search) => search.top_logits_needed(),
            Strategy::Rank(_) => None,
        }
    }

    /// [`advance`](Self::advance) with the greatest logits of each row instead of all of them: makes
    /// the same choice, ties included. `None` if they do not determine it, for example because a
    /// token that is not among them may have the same logit as one that is. Then nothing has changed,
    /// and the caller must advance with all logits.
    pub fn advance_with_top_logits(&mut self, top: &[TopLogits]) -> Option<Step> {
        match &mut self.0 {
            Strategy::Sample(sampler) => sampler.advance_with_top_logits(top),
            Strategy::Beam(search) => search.advance_with_top_logits(top),
            Strategy::Rank(_) => None,
        }
    }

    /// Takes the logits of the last token of every row, `[rows, vocabulary]`, all finite.
    ///
    /// The first call takes those of the prompt, a single row that all sequences continue. Later
    /// calls take as many rows as the previous [`Step`] demanded.
    pub fn advance(&mut self, logits: &[f32]) -> Step {
        match &mut self.0 {
            Strategy::Sample(sampler) => sampler.advance(logits),
            Strategy::Beam(search) => search.advance(logits),
            Strategy::Rank(search) => search.advance(logits),
        }
    }
}

/// The geometric mean of `count` probabilities whose logarithms add up to `log_probability`.
fn confidence(log_probability: f64, count: usize) -> f32 {
    (log_probability / count.max(1) as f64).exp() as f32
}
