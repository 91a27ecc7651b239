//! What greedy decoding, sampling and beam search have in common: which tokens a sequence may take,
//! and where it ends.

use super::params::{Alternatives, FinishReason, GenerationParams};
use super::processors::{MinLength, ProcessorChain};
use super::{DecoderInput, math};

/// The rules for all sequences of an image.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) chain: ProcessorChain,
    /// The only processor that is active when the greatest logits decide.
    pub(super) min_length: MinLength,
    uses_top_logits: bool,
    /// The token that ends a sequence.
    pub(super) end: u32,
    /// How many of the most probable tokens are reported for each generated one.
    alternatives: usize,
    /// Logits of a row.
    pub(super) vocabulary: usize,
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// The length at which a sequence ends at the latest, prompt included.
    pub(super) max_length: usize,
}

impl Rules {
    pub(super) fn new(params: &GenerationParams, input: &DecoderInput) -> Self {
        let prompt = input.prompt.len();
        Self {
            chain: ProcessorChain::new(params, prompt, input.end),
            min_length: MinLength { length: prompt + params.min_new_tokens, end: input.end },
            uses_top_logits: !needs_all_logits(params),
            end: input.end,
            alternatives: params.alternatives,
            vocabulary: input.vocabulary,
            prompt,
            max_length: input.max_length.min(prompt + params.max_new_tokens),
        }
    }

    /// `count`, if the greatest logits of each row determine the choice.
    pub(super) fn top_logits(&self, count: usize) -> Option<usize> {
        self.uses_top_logits.then_some(count)
    }

    /// The most probable tokens of a row, if they are wanted.
    pub(super) fn alternatives(&self, row: &[f32]) -> Option<Alternatives> {
        (self.alternatives > 0).then(|| math::most_probable(row, self.alternatives).into())
    }

    /// Why a sequence of `length` tokens ends with this one, if it does.
    pub(super) fn finish_reason(&self, last: u32, length: usize) -> Option<FinishReason> {
        if last == self.end {
            Some(FinishReason::Stop)
        } else {
            (length >= self.max_length).then_some(FinishReason::Length)
        }
    }

    /// How many of a sequence's `length` tokens were generated.
    pub(super) fn generated(&self, length: usize) -> usize {
        length - self.prompt
    }
}

/// Whether all logits are needed: because they are processed according to the tokens so far, sampled
/// from, or searched for alternatives. Forbidding `end` changes only one of them.
fn needs_all_logits(params: &GenerationParams) -> bool {
    params.do_sample
        || params.repetition_penalty != 1.0
        || params.no_repeat_ngram_size > 0
        || params.alternatives > 0
}
