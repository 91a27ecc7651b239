//! Decoding strategies over plain slices of logits: they choose tokens and say which row continues
//! which. Nothing here knows the model.
//!
//! Where the logits are on a device, greedy decoding and beam search can do with each row's best
//! few ([`TopLogits`]) and choose the same tokens.
//!
//! The semantics are those of `generate` in Hugging Face transformers 5.23: the order of the
//! logits processors, beam search with its finished beams and its length penalty, and the
//! stopping criteria.

mod beam;
pub mod filters;
mod math;
pub mod params;
mod random;
mod sample;
#[cfg(test)]
mod script;
mod top_logits;

pub use params::{EarlyStopping, FinishReason, GenerationParams, MAX_BEAMS, Sequence};
pub use random::fresh_seed;
pub use top_logits::TopLogits;

use beam::BeamSearch;
use sample::Sampler;

/// What decoding has to know beside the parameters.
#[derive(Debug, Clone)]
pub struct Task {
    /// The tokens that the answer continues, the first (decoder-start) token included.
    pub prompt: Vec<u32>,
    /// The token that ends a sequence.
    pub end: u32,
    /// Logits in a row.
    pub vocabulary: usize,
    /// Longest sequence, prompt included; `max_new_tokens` may end it earlier.
    pub max_length: usize,
    /// What greedy decoding and sampling take as the first tokens of the first sequence, whatever
    /// the logits say: somebody has heard them already.
    pub written: Vec<u32>,
}

/// What the logits of one step led to.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The newest token of the first sequence, as long as it grows; `None` in beam search, whose
    /// best sequence is known only at the end.
    pub newest: Option<u32>,
    /// How it goes on.
    pub progress: Progress,
}

/// How decoding goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The model is asked for the next logits.
    Continue {
        /// The token that each row reads next.
        tokens: Vec<u32>,
        /// For each row, the row of the step before that it continues.
        sources: Vec<usize>,
    },
    /// All sequences have ended: of beam search the best first, of sampling in the order of rows.
    Finished(Vec<Sequence>),
}

/// The decoding of one image: a state machine that is fed with logits.
#[derive(Debug)]
pub struct Decoder(Strategy);

#[derive(Debug)]
enum Strategy {
    Sample(Sampler),
    /// Boxed: it is several times larger than the other, and there is one of it an image.
    Beam(Box<BeamSearch>),
}

impl Decoder {
    /// Greedy decoding, sampling or beam search, as the parameters (already validated) ask.
    #[must_use]
    pub fn new(params: &GenerationParams, task: Task) -> Self {
        Self(if params.num_beams > 1 {
            Strategy::Beam(Box::new(BeamSearch::new(params, task)))
        } else {
            Strategy::Sample(Sampler::new(params, task))
        })
    }

    /// How many of each row's best tokens are enough, most of the time, for
    /// [`advance_by_best`](Self::advance_by_best); `None` if the choice takes all logits, because
    /// they are edited or drawn from.
    #[must_use]
    pub fn wanted(&self) -> Option<usize> {
        match &self.0 {
            Strategy::Sample(sampler) => sampler.wanted(),
            Strategy::Beam(search) => search.wanted(),
        }
    }

    /// [`advance`](Self::advance) by the best of every row instead of all its logits: the same
    /// choice, equal values included. `None` if these do not decide it, as when a token that is not
    /// among them may have the same value as one that is; nothing has changed then, and it takes
    /// all logits.
    pub fn advance_by_best(&mut self, best: &[TopLogits]) -> Option<Step> {
        match &mut self.0 {
            Strategy::Sample(sampler) => sampler.advance_by_best(best),
            Strategy::Beam(search) => search.advance_by_best(best),
        }
    }

    /// Takes the logits of the last token of every row, row after row.
    ///
    /// The first call takes those of the prompt: one row, from which all sequences grow. Later
    /// calls take as many rows as the call before asked for. All logits must be finite.
    pub fn advance(&mut self, logits: &[f32]) -> Step {
        match &mut self.0 {
            Strategy::Sample(sampler) => sampler.advance(logits),
            Strategy::Beam(search) => search.advance(logits),
        }
    }
}

/// The length at which a sequence ends for want of room.
fn length_limit(params: &GenerationParams, task: &Task) -> usize {
    task.max_length.min(task.prompt.len() + params.max_new_tokens)
}

/// Whether every logit is needed as it is: to be edited by what is known of the tokens so far, or to
/// be drawn from. That `end` may be forbidden changes only one.
fn needs_all_logits(params: &GenerationParams) -> bool {
    params.do_sample || params.repetition_penalty != 1.0 || params.no_repeat_ngram_size > 0
}

/// Geometric mean of `count` probabilities whose logarithms add up to `log_probability`.
fn confidence(log_probability: f64, count: usize) -> f32 {
    (log_probability / count.max(1) as f64).exp() as f32
}
