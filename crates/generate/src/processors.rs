//! Logits processors: each changes the scores of the next token, depending on the tokens so far.

use std::fmt::Debug;

use super::params::GenerationParams;

/// Changes the scores of the next token. Forbidden tokens get −∞.
pub trait LogitsProcessor: Debug + Send {
    /// `ids` are the tokens so far, prompt included; `scores` has one value per token of the
    /// vocabulary.
    fn process(&self, ids: &[u32], scores: &mut [f32]);
}

/// Processors in the order in which transformers applies them.
#[derive(Debug, Default)]
pub struct ProcessorChain(Vec<Box<dyn LogitsProcessor>>);

impl ProcessorChain {
    /// The processors that the parameters demand. `prompt` is the number of tokens of the prompt,
    /// `end` the token that ends a sequence.
    #[must_use]
    pub fn new(params: &GenerationParams, prompt: usize, end: u32) -> Self {
        let mut chain = Self::default();
        if params.repetition_penalty != 1.0 {
            chain.push(RepetitionPenalty(params.repetition_penalty));
        }
        if params.no_repeat_ngram_size > 0 {
            chain.push(NoRepeatNgram(params.no_repeat_ngram_size));
        }
        if params.min_new_tokens > 0 {
            chain.push(MinLength { length: prompt + params.min_new_tokens, end });
        }
        if params.do_sample {
            // A beam needs a candidate in addition to `end` to continue.
            let keep = if params.num_beams > 1 { 2 } else { 1 };
            if params.temperature != 1.0 {
                chain.push(Temperature(params.temperature));
            }
            if params.top_k != 0 {
                chain.push(TopK(params.top_k.max(keep)));
            }
            if params.top_p < 1.0 {
                chain.push(TopP { mass: params.top_p, keep });
            }
        }
        chain
    }

    fn push(&mut self, processor: impl LogitsProcessor + 'static) {
        self.0.push(Box::new(processor));
    }
}

impl LogitsProcessor for ProcessorChain {
    fn process(&self, ids: &[u32], scores: &mut [f32]) {
        for processor in &self.0 {
            processor.process(ids, scores);
        }
    }
}

/// Divides positive and multiplies negative scores of tokens that have already occurred.
#[derive(Debug, Clone, Copy)]
pub struct RepetitionPenalty(pub f32);

impl LogitsProcessor for RepetitionPenalty {
    fn process(&self, ids: &[u32], scores: &mut [f32]) {
        for (position, id) in ids.iter().enumerate() {
            if ids[..position].contains(id) {
                continue;
            }
            if let Some(score) = scores.get_mut(*id as usize) {
                *score = if *score < 0.0 { *score * self.0 } else { *score / self.0 };
            }
        }
    }
}

/// Forbids every token that would complete an n-gram that has already occurred.
#[derive(Debug, Clone, Copy)]
pub struct NoRepeatNgram(pub usize);

impl LogitsProcessor for NoRepeatNgram {
    fn process(&self, ids: &[u32], scores: &mut [f32]) {
        let Some(first) = (ids.len() + 1).checked_sub(self.0) else { return };
        let suffix = &ids[first.min(ids.len())..];
        for window in ids.windows(self.0) {
            let (last, before) = (window[self.0 - 1], &window[..self.0 - 1]);
            if before == suffix
                && let Some(score) = scores.get_mut(last as usize)
            {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Forbids `end` until there are `length` tokens.
#[derive(Debug, Clone, Copy)]
pub struct MinLength {
    /// Tokens, prompt included.
    pub length: usize,
    /// The token that ends a sequence.
    pub end: u32,
}

impl MinLength {
    /// The token that may not follow `ids`, if any.
    pub(super) fn forbids(&self, ids: &[u32]) -> Option<u32> {
        (ids.len() < self.length).then_some(self.end)
    }
}

impl LogitsProcessor for MinLength {
    fn process(&self, ids: &[u32], scores: &mut [f32]) {
        if let Some(end) = self.forbids(ids)
            && let Some(score) = scores.get_mut(end as usize)
        {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Divides all scores.
#[derive(Debug, Clone, Copy)]
pub struct Temperature(pub f32);

impl LogitsProcessor for Temperature {
    fn process(&self, _: &[u32], scores: &mut [f32]) {
        for score in scores {
            *score /= self.0;
        }
    }
}

/// Keeps the greatest scores, and those that equal the least of them.
#[derive(Debug, Clone, Copy)]
pub struct TopK(pub usize);

impl LogitsProcessor for TopK {
    fn process(&self, _: &[u32], scores: &mut [f32]) {
        let Some(last) = self.0.checked_sub(1).filter(|last| *last < scores.len()) else {
            return;
        };
        let mut sorted = scores.to_vec();
        let (_, least, _) = sorted.select_nth_unstable_by(last, |a, b| b.total_cmp(a));
        let least = *least;
        for score in scores {
            if *score < least {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Keeps the fewest tokens whose probabilities add up to `mass`, but at least `keep` tokens.
#[derive(Debug, Clone, Copy)]
pub struct TopP {
    /// Probability to keep, 0–1.
    pub mass: f32,
    /// The minimum of tokens to keep.
    pub keep: usize,
}

impl LogitsProcessor for TopP {
    fn process(&self, _: &[u32], scores: &mut [f32]) {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let max = order.last().map_or(0.0, |&best| scores[best]);
        let total: f64 = scores.iter().map(|s| f64::from((s - max).exp())).sum();
        let tail = (1.0 - f64::from(self.mass)) as f32;
        let mut below = 0.0;
        let droppable = order.len().saturating_sub(self.keep);
        for &index in &order[..droppable] {
            below += f64::from((scores[index] - max).exp()) / total;
            if below as f32 > tail {
                break;
            }
            scores[index] = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: f32 = f32::NEG_INFINITY;

    fn after(processor: impl LogitsProcessor, ids: &[u32], scores: &[f32]) -> Vec<f32> {
        let mut scores = scores.to_vec();
        processor.process(ids, &mut scores);
        scores
    }

    // tests/it/processors.rs compares with transformers; these are corner cases.

    #[test]
    fn a_repeated_token_is_penalised_once() {
        let scores = after(RepetitionPenalty(2.0), &[0, 1, 0, 9], &[4.0, -4.0, 1.0]);
        assert_eq!(scores, [2.0, -8.0, 1.0]);
    }

    #[test]
    fn no_ngram_is_repeated() {
        let scores = [0.0; 5];
        assert_eq!(after(NoRepeatNgram(2), &[1, 2, 3, 1], &scores), [0.0, 0.0, NO, 0.0, 0.0]);
        assert_eq!(after(NoRepeatNgram(1), &[1, 3], &scores), [0.0, NO, 0.0, NO, 0.0]);
        assert_eq!(after(NoRepeatNgram(3), &[1], &scores), scores);
        assert_eq!(after(NoRepeatNgram(9), &[1, 1, 1], &scores), scores);
        assert_eq!(after(NoRepeatNgram(2), &[], &scores), scores);
    }

    #[test]
    fn the_end_is_forbidden_until_the_minimum_length() {
        let processor = MinLength { length: 3, end: 1 };
        assert_eq!(after(processor, &[5, 5], &[0.0, 0.0]), [0.0, NO]);
        assert_eq!(after(processor, &[5, 5, 5], &[0.0, 0.0]), [0.0, 0.0]);
    }

    #[test]
    fn top_k_keeps_ties() {
        assert_eq!(after(TopK(2), &[], &[3.0, 1.0, 2.0, 2.0]), [3.0, NO, 2.0, 2.0]);
        assert_eq!(after(TopK(9), &[], &[3.0, 1.0]), [3.0, 1.0]);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_the_mass_and_a_minimum() {
        let scores = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let kept = |mass, keep| {
            after(TopP { mass, keep }, &[], &scores).iter().map(|s| *s > NO).collect::<Vec<_>>()
        };
        assert_eq!(kept(0.4, 1), [true, false, false]);
        assert_eq!(kept(0.6, 1), [true, true, false]);
        assert_eq!(kept(0.01, 2), [true, true, false]);
        assert_eq!(kept(0.9, 1), [true, true, true]);
    }

    #[test]
    fn the_chain_has_only_the_processors_that_are_needed() {
        let count = |params: &GenerationParams| ProcessorChain::new(params, 1, 2).0.len();
        let params = GenerationParams::default();
        assert_eq!(count(&params), 0);
        let all = GenerationParams {
            repetition_penalty: 1.1,
            no_repeat_ngram_size: 2,
            min_new_tokens: 1,
            temperature: 0.5,
            top_p: 0.5,
            ..params
        };
        assert_eq!(count(&all), 3);
        assert_eq!(count(&GenerationParams { do_sample: true, ..all }), 6);
    }
}
