//! Greedy decoding and sampling: independent sequences.

use super::params::{Alternatives, FinishReason, GenerationParams, Sequence};
use super::processors::LogitsProcessor;
use super::random::{Random, fresh_seed};
use super::rules::Rules;
use super::top_logits::TopLogits;
use super::{DecoderInput, Progress, Step, confidence, math};

/// Sequences that grow by their most probable or by a random token.
#[derive(Debug)]
pub(super) struct Sampler {
    rules: Rules,
    /// The first tokens of the first sequence.
    forced: Vec<u32>,
    sequences: Vec<GrowingSequence>,
    /// The sequence of each row of logits; in the first step all read the first row.
    rows: Vec<usize>,
    started: bool,
}

#[derive(Debug)]
struct GrowingSequence {
    ids: Vec<u32>,
    log_probability: f64,
    /// Of each generated token.
    log_probabilities: Vec<f32>,
    alternatives: Vec<Alternatives>,
    random: Option<Random>,
    finished: Option<FinishReason>,
}

impl Sampler {
    pub(super) fn new(params: &GenerationParams, input: DecoderInput) -> Self {
        let seed = params.seed.unwrap_or_else(fresh_seed);
        let sequence = |row| GrowingSequence {
            ids: input.prompt.clone(),
            log_probability: 0.0,
            log_probabilities: Vec::new(),
            alternatives: Vec::new(),
            random: params.do_sample.then(|| Random::new(seed, row)),
            finished: None,
        };
        Self {
            rules: Rules::new(params, &input),
            forced: input.forced,
            sequences: (0..params.num_return_sequences).map(sequence).collect(),
            rows: (0..params.num_return_sequences).collect(),
            started: false,
        }
    }

    /// The greatest, another one in case that one is `end` and forbidden, and one more to exclude a tie.
    pub(super) fn top_logits_needed(&self) -> Option<usize> {
        self.rules.top_logits(3)
    }

    pub(super) fn advance(&mut self, logits: &[f32]) -> Step {
        self.proceed(|sampler, index, source| {
            let size = sampler.rules.vocabulary;
            sampler.choose(index, &logits[source * size..][..size])
        })
    }

    pub(super) fn advance_with_top_logits(&mut self, top: &[TopLogits]) -> Option<Step> {
        let mut choices = Vec::with_capacity(self.rows.len());
        for (row, &index) in self.rows.iter().enumerate() {
            let row = top.get(if self.started { row } else { 0 })?;
            let (token, logit) = match self.forced_token(index) {
                Some(forced) => *row.tokens.iter().find(|(token, _)| *token == forced)?,
                None => row.argmax(self.rules.min_length.forbids(&self.sequences[index].ids))?,
            };
            choices.push((token, f64::from(row.log_probability(logit))));
        }
        let mut choices = choices.into_iter();
        Some(self.proceed(|sampler, _, _| choices.next().unwrap_or((sampler.rules.end, 0.0))))
    }

    /// Extends every unfinished sequence. `choose` gets the index of a sequence and the row that it
    /// reads, and returns a token and the logarithm of its probability.
    fn proceed(&mut self, mut choose: impl FnMut(&mut Self, usize, usize) -> (u32, f64)) -> Step {
        let first_is_unfinished = self.rows.first() == Some(&0);
        let (mut tokens, mut sources, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut newest = None;
        for (row, index) in std::mem::take(&mut self.rows).into_iter().enumerate() {
            let source = if self.started { row } else { 0 };
            let (token, log_probability) = choose(self, index, source);
            self.grow(index, token, log_probability);
            if row == 0 && first_is_unfinished {
                newest = Some(token);
            }
            if self.sequences[index].finished.is_none() {
                tokens.push(token);
                sources.push(source);
                rows.push(index);
            }
        }
        self.started = true;
        self.rows = rows;
        let progress = if tokens.is_empty() {
            Progress::Finished(self.take_sequences())
        } else {
            Progress::Continue { tokens, sources }
        };
        Step { newest, progress }
    }

    /// The most probable or a random token of a row, and the logarithm of its probability.
    fn choose(&mut self, index: usize, logits: &[f32]) -> (u32, f64) {
        let forced = self.forced_token(index).filter(|token| (*token as usize) < logits.len());
        let sequence = &mut self.sequences[index];
        let mut scores = logits.to_vec();
        self.rules.chain.process(&sequence.ids, &mut scores);
        let drawn = sequence.random.as_mut().and_then(|random| random.draw(&scores));
        let token = drawn.unwrap_or_else(|| math::argmax(&scores));
        sequence.alternatives.extend(self.rules.alternatives(logits));
        // A forced token uses up a random number too, so that later draws are the same.
        let token = forced.map_or(token, |token| token as usize);
        (token as u32, f64::from(math::log_probability(logits, token)))
    }

    /// The token that a sequence must take next, if any.
    fn forced_token(&self, index: usize) -> Option<u32> {
        let position = self.rules.generated(self.sequences[index].ids.len());
        self.forced.get(position).copied().filter(|_| index == 0)
    }

    /// Appends a token to one sequence.
    fn grow(&mut self, index: usize, token: u32, log_probability: f64) {
        let sequence = &mut self.sequences[index];
        sequence.log_probability += log_probability;
        sequence.log_probabilities.push(log_probability as f32);
        sequence.ids.push(token);
        sequence.finished = self.rules.finish_reason(token, sequence.ids.len());
    }

    fn take_sequences(&mut self) -> Vec<Sequence> {
        let finish = |sequence: GrowingSequence| {
            let generated = self.rules.generated(sequence.ids.len());
            Sequence {
                generated,
                confidence: confidence(sequence.log_probability, generated),
                log_probabilities: sequence.log_probabilities,
                alternatives: sequence.alternatives,
                score: None,
                finish_reason: sequence.finished.unwrap_or(FinishReason::Length),
                ids: sequence.ids,
            }
        };
        std::mem::take(&mut self.sequences).into_iter().map(finish).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, decode, greedy, input};
    use super::*;

    #[test]
    fn greedy_decoding_takes_the_most_probable_token_and_stops_at_the_end() {
        // 9 → 3 → 4 → end
        let mut script = Script::new(|ids| match ids {
            [9] => vec![(3, 2.0), (4, 1.0)],
            [9, 3] => vec![(4, 1.0), (5, 1.0)], // a tie: the lower token
            _ => vec![(2, 5.0)],
        });
        let (sequences, tokens) = decode(&mut script, &greedy(), input(&[9]));
        assert_eq!(sequences[0].ids, [9, 3, 4, 2]);
        assert_eq!(sequences[0].generated, 3);
        assert_eq!(sequences[0].finish_reason, FinishReason::Stop);
        assert_eq!(tokens, [3, 4, 2]);
        let each = &sequences[0].log_probabilities;
        assert_eq!(each.len(), 3);
        let mean = each.iter().sum::<f32>() / 3.0;
        assert!((mean.exp() - sequences[0].confidence).abs() < 1e-6, "{:?}", sequences[0]);
        assert_eq!(script.inputs, [vec![vec![9]], vec![vec![9, 3]], vec![vec![9, 3, 4]]]);
    }

    #[test]
    fn a_sequence_that_does_not_stop_ends_at_its_length_limit() {
        let mut script = Script::new(|_| vec![(3, 1.0)]);
        let params = GenerationParams { max_new_tokens: 4, ..greedy() };
        let (sequences, _) = decode(&mut script, &params, input(&[9, 8]));
        assert_eq!(sequences[0].ids, [9, 8, 3, 3, 3, 3]);
        assert_eq!(sequences[0].finish_reason, FinishReason::Length);
        let (sequences, _) =
            decode(&mut script, &params, DecoderInput { max_length: 4, ..input(&[9, 8]) });
        assert_eq!(sequences[0].ids, [9, 8, 3, 3]);
        assert_eq!(sequences[0].generated, 2);
    }

    #[test]
    fn confidence_is_the_mean_of_unprocessed_probabilities() {
        let mut script = Script::new(|_| vec![(3, 1.0), (2, 0.0)]);
        let params = GenerationParams { min_new_tokens: 2, max_new_tokens: 2, ..greedy() };
        let (sequences, _) = decode(&mut script, &params, input(&[9]));
        let others = 8.0 * (-20.0_f32).exp();
        let expected = 1_f32.exp() / (1_f32.exp() + 1.0 + others);
        assert!((sequences[0].confidence - expected).abs() < 1e-6);
    }

    #[test]
    fn alternatives_are_the_most_probable_tokens_of_the_unprocessed_logits() {
        let model = |ids: &[u32]| match ids {
            [9] => vec![(2, 3.0), (3, 2.0), (4, 1.0), (5, 1.0)],
            _ => vec![(2, 5.0), (6, 4.0)],
        };
        // The end is more probable, but forbidden at first.
        let params = GenerationParams { min_new_tokens: 1, alternatives: 3, ..greedy() };
        let (sequences, _) = decode(&mut Script::new(model), &params, input(&[9]));
        let Sequence { ids, log_probabilities, alternatives, .. } = &sequences[0];
        assert_eq!(ids, &[9, 3, 2]);
        let tokens = |n: usize| alternatives[n].iter().map(|(token, _)| *token).collect::<Vec<_>>();
        assert_eq!((alternatives.len(), tokens(0), tokens(1)), (2, vec![2, 3, 4], vec![2, 6, 0]));
        assert_eq!(alternatives[0][1], (3, log_probabilities[0]));
        assert_eq!(alternatives[1][0], (2, log_probabilities[1]));
        assert!(alternatives[0][0].1 > alternatives[0][1].1, "{alternatives:?}");
        // Nothing else depends on them, and without the wish there are none.
        let (plain, _) = decode(
            &mut Script::new(model),
            &GenerationParams { alternatives: 0, ..params },
            input(&[9]),
        );
        let without = Sequence { alternatives: Vec::new(), ..sequences[0].clone() };
        assert_eq!(plain, [without]);
    }

    #[test]
    fn rows_of_a_seed_do_not_depend_on_their_number() {
        let sample = |rows, seed| {
            let mut script = Script::new(|_| vec![(2, 0.0), (3, 1.0), (4, 1.0), (5, 1.0)]);
            let params = GenerationParams {
                do_sample: true,
                num_return_sequences: rows,
                seed: Some(seed),
                ..greedy()
            };
            decode(&mut script, &params, input(&[9])).0
        };
        let three = sample(3, 1);
        assert_eq!(three.len(), 3);
        assert_eq!(three[..1], sample(1, 1)[..]);
        assert_eq!(three, sample(3, 1));
        assert_ne!(three[0].ids, three[1].ids);
        assert_ne!(three[0].ids, sample(1, 2)[0].ids);
    }

    #[test]
    fn forced_tokens_are_kept_and_continued() {
        // Without forced tokens the result is 3 3 3 …; after a 4 comes a 5.
        let model = |ids: &[u32]| match ids.last() {
            Some(4) => vec![(5, 2.0), (3, 1.0)],
            _ => vec![(3, 2.0), (4, 1.0), (5, 0.5)],
        };
        for forced in [vec![3, 4], vec![3, 8]] {
            let continued = DecoderInput { forced: forced.clone(), ..input(&[9]) };
            let (sequences, tokens) = decode(&mut Script::new(model), &greedy(), continued);
            assert_eq!(tokens[..2], forced);
            assert_eq!(tokens[2], if forced[1] == 4 { 5 } else { 3 });
            assert_eq!(sequences[0].ids[1..], tokens);
        }
        // Sampling draws the same tokens as without the interruption.
        let params = GenerationParams { do_sample: true, seed: Some(3), top_k: 0, ..greedy() };
        let flat = |_: &[u32]| (3..10).map(|token| (token, 1.0)).collect();
        let (whole, tokens) = decode(&mut Script::new(flat), &params, input(&[9]));
        let continued = DecoderInput { forced: tokens[..3].to_vec(), ..input(&[9]) };
        assert_eq!(decode(&mut Script::new(flat), &params, continued).0, whole);
    }

    #[test]
    fn top_k_of_one_is_greedy() {
        let model = |ids: &[u32]| vec![(ids.len() + 1, 1.0), (3, 0.9), (2, 0.8)];
        let params = GenerationParams { do_sample: true, top_k: 1, max_new_tokens: 4, ..greedy() };
        let sampled = decode(&mut Script::new(model), &params, input(&[9])).0;
        let best = GenerationParams { do_sample: false, ..params };
        assert_eq!(sampled, decode(&mut Script::new(model), &best, input(&[9])).0);
    }
}
