//! Greedy decoding and sampling: sequences that do not know each other.

use super::filters::{Chain, LogitsProcessor, MinLength};
use super::params::{FinishReason, GenerationParams, Sequence};
use super::random::{Random, fresh_seed};
use super::top_logits::TopLogits;
use super::{Progress, Step, Task, confidence, length_limit, math, needs_all_logits};

/// Sequences that grow by their best or by a random token.
#[derive(Debug)]
pub(super) struct Sampler {
    chain: Chain,
    /// The only processor there is when the best token decides.
    least: MinLength,
    by_best: bool,
    end: u32,
    vocabulary: usize,
    prompt: usize,
    max_length: usize,
    /// What the first sequence begins with.
    written: Vec<u32>,
    sequences: Vec<Growing>,
    /// Which sequence each row of the logits belongs to; all read the first row at the start.
    rows: Vec<usize>,
    started: bool,
}

#[derive(Debug)]
struct Growing {
    ids: Vec<u32>,
    log_probability: f64,
    random: Option<Random>,
    finished: Option<FinishReason>,
}

impl Sampler {
    pub(super) fn new(params: &GenerationParams, task: Task) -> Self {
        let seed = params.seed.unwrap_or_else(fresh_seed);
        let sequence = |row| Growing {
            ids: task.prompt.clone(),
            log_probability: 0.0,
            random: params.do_sample.then(|| Random::new(seed, row)),
            finished: None,
        };
        Self {
            chain: Chain::new(params, task.prompt.len(), task.end),
            least: MinLength { length: task.prompt.len() + params.min_new_tokens, end: task.end },
            by_best: !needs_all_logits(params),
            end: task.end,
            vocabulary: task.vocabulary,
            prompt: task.prompt.len(),
            max_length: length_limit(params, &task),
            written: task.written,
            sequences: (0..params.num_return_sequences).map(sequence).collect(),
            rows: (0..params.num_return_sequences).collect(),
            started: false,
        }
    }

    /// The best, another one if that is the end and too early, and one to see that they are ahead.
    pub(super) fn wanted(&self) -> Option<usize> {
        self.by_best.then_some(3)
    }

    pub(super) fn advance(&mut self, logits: &[f32]) -> Step {
        self.proceed(|sampler, index, source| {
            sampler.choose(index, &logits[source * sampler.vocabulary..][..sampler.vocabulary])
        })
    }

    pub(super) fn advance_by_best(&mut self, best: &[TopLogits]) -> Option<Step> {
        let mut choices = Vec::with_capacity(self.rows.len());
        for (place, &index) in self.rows.iter().enumerate() {
            let row = best.get(if self.started { place } else { 0 })?;
            let (token, logit) = match self.given(index) {
                Some(given) => *row.tokens.iter().find(|(token, _)| *token == given)?,
                None => row.argmax(self.least.forbids(&self.sequences[index].ids))?,
            };
            choices.push((token, f64::from(row.log_probability(logit))));
        }
        let mut choices = choices.into_iter();
        Some(self.proceed(|sampler, _, _| choices.next().unwrap_or((sampler.end, 0.0))))
    }

    /// Every sequence that goes on takes the token that `choose` gives, by the sequence's index and
    /// the row that it reads, with the logarithm of its probability.
    fn proceed(&mut self, mut choose: impl FnMut(&mut Self, usize, usize) -> (u32, f64)) -> Step {
        let newest_of_first = self.rows.first() == Some(&0);
        let (mut tokens, mut sources, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut newest = None;
        for (place, index) in std::mem::take(&mut self.rows).into_iter().enumerate() {
            let source = if self.started { place } else { 0 };
            let (token, log_probability) = choose(self, index, source);
            self.grow(index, token, log_probability);
            if place == 0 && newest_of_first {
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
            Progress::Finished(self.take())
        } else {
            Progress::Continue { tokens, sources }
        };
        Step { newest, progress }
    }

    /// The best or a random token of a row, and the logarithm of its probability.
    fn choose(&mut self, index: usize, logits: &[f32]) -> (u32, f64) {
        let given = self.given(index).filter(|token| (*token as usize) < logits.len());
        let sequence = &mut self.sequences[index];
        let mut scores = logits.to_vec();
        self.chain.process(&sequence.ids, &mut scores);
        let drawn = sequence.random.as_mut().and_then(|random| random.draw(&scores));
        let place = drawn.unwrap_or_else(|| math::argmax(&scores));
        // Drawn all the same, so that what follows is drawn as it was.
        let place = given.map_or(place, |token| token as usize);
        (place as u32, f64::from(math::log_probability(logits, place)))
    }

    /// The token that a sequence must take next, if somebody has heard it already.
    fn given(&self, index: usize) -> Option<u32> {
        let place = self.sequences[index].ids.len() - self.prompt;
        self.written.get(place).copied().filter(|_| index == 0)
    }

    /// Appends a token to one sequence.
    fn grow(&mut self, index: usize, token: u32, log_probability: f64) {
        let sequence = &mut self.sequences[index];
        sequence.log_probability += log_probability;
        sequence.ids.push(token);
        if token == self.end {
            sequence.finished = Some(FinishReason::Stop);
        } else if sequence.ids.len() >= self.max_length {
            sequence.finished = Some(FinishReason::Length);
        }
    }

    fn take(&mut self) -> Vec<Sequence> {
        let finish = |sequence: Growing| {
            let generated = sequence.ids.len() - self.prompt;
            Sequence {
                generated,
                confidence: confidence(sequence.log_probability, generated),
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
    use super::super::script::{Script, decode, greedy, task};
    use super::*;

    #[test]
    fn greedy_follows_the_best_token_and_stops_at_the_end() {
        // 9 → 3 → 4 → end
        let mut script = Script::new(|ids| match ids {
            [9] => vec![(3, 2.0), (4, 1.0)],
            [9, 3] => vec![(4, 1.0), (5, 1.0)], // a tie: the lower index
            _ => vec![(2, 5.0)],
        });
        let (sequences, tokens) = decode(&mut script, &greedy(), task(&[9]));
        assert_eq!(sequences[0].ids, [9, 3, 4, 2]);
        assert_eq!(sequences[0].generated, 3);
        assert_eq!(sequences[0].finish_reason, FinishReason::Stop);
        assert_eq!(tokens, [3, 4, 2]);
        assert_eq!(script.asked, [vec![vec![9]], vec![vec![9, 3]], vec![vec![9, 3, 4]]]);
    }

    #[test]
    fn length_ends_what_does_not_stop() {
        let mut script = Script::new(|_| vec![(3, 1.0)]);
        let params = GenerationParams { max_new_tokens: 4, ..greedy() };
        let (sequences, _) = decode(&mut script, &params, task(&[9, 8]));
        assert_eq!(sequences[0].ids, [9, 8, 3, 3, 3, 3]);
        assert_eq!(sequences[0].finish_reason, FinishReason::Length);
        let (sequences, _) = decode(&mut script, &params, Task { max_length: 4, ..task(&[9, 8]) });
        assert_eq!(sequences[0].ids, [9, 8, 3, 3]);
        assert_eq!(sequences[0].generated, 2);
    }

    #[test]
    fn confidence_is_the_mean_of_raw_probabilities() {
        let mut script = Script::new(|_| vec![(3, 1.0), (2, 0.0)]);
        let params = GenerationParams { min_new_tokens: 2, max_new_tokens: 2, ..greedy() };
        let (sequences, _) = decode(&mut script, &params, task(&[9]));
        let others = 8.0 * (-20.0_f32).exp();
        let expected = 1_f32.exp() / (1_f32.exp() + 1.0 + others);
        assert!((sequences[0].confidence - expected).abs() < 1e-6);
    }

    #[test]
    fn a_seed_gives_the_same_rows_however_many_there_are() {
        let sample = |rows, seed| {
            let mut script = Script::new(|_| vec![(2, 0.0), (3, 1.0), (4, 1.0), (5, 1.0)]);
            let params = GenerationParams {
                do_sample: true,
                num_return_sequences: rows,
                seed: Some(seed),
                ..greedy()
            };
            decode(&mut script, &params, task(&[9])).0
        };
        let three = sample(3, 1);
        assert_eq!(three.len(), 3);
        assert_eq!(three[..1], sample(1, 1)[..]);
        assert_eq!(three, sample(3, 1));
        assert_ne!(three[0].ids, three[1].ids);
        assert_ne!(three[0].ids, sample(1, 2)[0].ids);
    }

    #[test]
    fn what_was_heard_is_kept_and_continued() {
        // Alone it would write 3 3 3 …; behind a 4 it writes 5.
        let model = |ids: &[u32]| match ids.last() {
            Some(4) => vec![(5, 2.0), (3, 1.0)],
            _ => vec![(3, 2.0), (4, 1.0), (5, 0.5)],
        };
        for written in [vec![3, 4], vec![3, 8]] {
            let continued = Task { written: written.clone(), ..task(&[9]) };
            let (sequences, tokens) = decode(&mut Script::new(model), &greedy(), continued);
            assert_eq!(tokens[..2], written);
            assert_eq!(tokens[2], if written[1] == 4 { 5 } else { 3 });
            assert_eq!(sequences[0].ids[1..], tokens);
        }
        // A job that samples draws what it would have drawn.
        let params = GenerationParams { do_sample: true, seed: Some(3), top_k: 0, ..greedy() };
        let flat = |_: &[u32]| (3..10).map(|token| (token, 1.0)).collect();
        let (whole, tokens) = decode(&mut Script::new(flat), &params, task(&[9]));
        let continued = Task { written: tokens[..3].to_vec(), ..task(&[9]) };
        assert_eq!(decode(&mut Script::new(flat), &params, continued).0, whole);
    }

    #[test]
    fn top_k_of_one_is_greedy() {
        let model = |ids: &[u32]| vec![(ids.len() + 1, 1.0), (3, 0.9), (2, 0.8)];
        let params = GenerationParams { do_sample: true, top_k: 1, max_new_tokens: 4, ..greedy() };
        let sampled = decode(&mut Script::new(model), &params, task(&[9])).0;
        let best = GenerationParams { do_sample: false, ..params };
        assert_eq!(sampled, decode(&mut Script::new(model), &best, task(&[9])).0);
    }
}
