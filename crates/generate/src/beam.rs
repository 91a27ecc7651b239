//! Beam search, step for step as `_beam_search` in transformers' `generation/utils.py` (5.23),
//! where also the reasons for its peculiarities are given; with `do_sample` the candidates of a
//! step are drawn instead of taken.

use super::filters::{Chain, LogitsProcessor, MinLength};
use super::params::{EarlyStopping, FinishReason, GenerationParams, Sequence};
use super::random::{Random, fresh_seed};
use super::top_logits::TopLogits;
use super::{Progress, Step, Task, confidence, length_limit, math, needs_all_logits};

/// Stands for "worse than anything real"; transformers adds it to scores in f32.
const NEVER: f32 = -1.0e9;

/// The search for one image's best sequences.
#[derive(Debug)]
pub(super) struct BeamSearch {
    chain: Chain,
    /// The only processor there is when the best tokens decide.
    least: MinLength,
    by_best: bool,
    end: u32,
    vocabulary: usize,
    beams: usize,
    returned: usize,
    prompt: usize,
    max_length: usize,
    length_penalty: f32,
    early_stopping: EarlyStopping,
    random: Option<Random>,
    /// The beams that go on, best first.
    running: Vec<Beam>,
    /// The best sequences that ended, best first; places not yet taken are not `done`.
    finished: Vec<Finished>,
    /// Whether a running beam may still become better than the worst finished one.
    may_improve: bool,
    started: bool,
}

#[derive(Debug, Clone)]
struct Beam {
    ids: Vec<u32>,
    /// Sum of the processed log-probabilities.
    score: f32,
    /// Sum of the raw log-probabilities.
    log_probability: f64,
}

#[derive(Debug, Clone)]
struct Finished {
    beam: Beam,
    /// The beam's score over its length to the power of the length penalty.
    score: f32,
    done: bool,
}

/// A beam and one more token.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    source: usize,
    token: u32,
    score: f32,
    log_probability: f64,
    /// Whether the sequence ends here, by its last token or its length.
    ends: bool,
}

impl BeamSearch {
    pub(super) fn new(params: &GenerationParams, task: Task) -> Self {
        let beam = |score| Beam { ids: task.prompt.clone(), score, log_probability: 0.0 };
        let beams = params.num_beams;
        // Only the first counts at the start, or all would become the same.
        let running = (0..beams).map(|n| beam(if n == 0 { 0.0 } else { NEVER })).collect();
        let nothing = Finished { beam: beam(NEVER), score: NEVER, done: false };
        Self {
            chain: Chain::new(params, task.prompt.len(), task.end),
            least: MinLength { length: task.prompt.len() + params.min_new_tokens, end: task.end },
            by_best: !needs_all_logits(params),
            end: task.end,
            vocabulary: task.vocabulary,
            beams,
            returned: params.num_return_sequences,
            prompt: task.prompt.len(),
            max_length: length_limit(params, &task),
            length_penalty: params.length_penalty,
            early_stopping: params.early_stopping,
            random: params
                .do_sample
                .then(|| Random::new(params.seed.unwrap_or_else(fresh_seed), 0)),
            running,
            finished: vec![nothing; beams],
            may_improve: true,
            started: false,
        }
    }

    /// As many as there are candidates, one more if one is the end and too early, and one to see that
    /// they are ahead.
    pub(super) fn wanted(&self) -> Option<usize> {
        self.by_best.then_some(2 * self.beams + 2)
    }

    pub(super) fn advance(&mut self, logits: &[f32]) -> Step {
        let candidates = self.candidates(logits);
        self.proceed(&candidates)
    }

    pub(super) fn advance_by_best(&mut self, best: &[TopLogits]) -> Option<Step> {
        let candidates = self.best_candidates(best)?;
        Some(self.proceed(&candidates))
    }

    fn proceed(&mut self, candidates: &[Candidate]) -> Step {
        let sources = self.keep_running(candidates);
        self.keep_finished(candidates);
        self.running = sources.1;
        self.update_improvement();
        self.started = true;
        let full =
            self.finished.iter().all(|f| f.done) && self.early_stopping == EarlyStopping::Always;
        let dead_end = candidates.iter().all(|candidate| candidate.ends);
        let progress = if !self.may_improve || full || dead_end {
            Progress::Finished(self.take())
        } else {
            let last = |beam: &Beam| beam.ids.last().copied().unwrap_or(self.end);
            Progress::Continue {
                tokens: self.running.iter().map(last).collect(),
                sources: sources.0,
            }
        };
        Step { newest: None, progress }
    }

    /// The best (or drawn) continuations of all beams together: twice as many as beams, so that
    /// enough remain even if every beam could end.
    fn candidates(&mut self, logits: &[f32]) -> Vec<Candidate> {
        let size = self.vocabulary;
        let mut raw = Vec::with_capacity(self.beams * size);
        let mut scores = Vec::with_capacity(self.beams * size);
        for (index, beam) in self.running.iter().enumerate() {
            let row = if self.started { index } else { 0 };
            let log_probabilities = math::log_softmax(&logits[row * size..][..size]);
            let from = scores.len();
            scores.extend_from_slice(&log_probabilities);
            self.chain.process(&beam.ids, &mut scores[from..]);
            for score in &mut scores[from..] {
                *score += beam.score;
            }
            raw.extend(log_probabilities);
        }
        let count = 2 * self.beams;
        let chosen = match &mut self.random {
            Some(random) => random.draw_distinct(&scores, count),
            None => math::top(&scores, count),
        };
        chosen
            .into_iter()
            .map(|flat| self.candidate(flat / size, (flat % size) as u32, scores[flat], raw[flat]))
            .collect()
    }

    /// [`candidates`](Self::candidates) from the best tokens of every row; `None` if another token
    /// may belong to them.
    fn best_candidates(&self, best: &[TopLogits]) -> Option<Vec<Candidate>> {
        let mut all = Vec::new();
        let mut edge = f32::NEG_INFINITY;
        for (index, beam) in self.running.iter().enumerate() {
            let row = best.get(if self.started { index } else { 0 })?;
            let forbidden = self.least.forbids(&beam.ids);
            for &(token, logit) in &row.tokens {
                if Some(token) != forbidden {
                    let raw = row.log_probability(logit);
                    all.push(self.candidate(index, token, raw + beam.score, raw));
                }
            }
            if let Some(logit) = row.edge() {
                edge = edge.max(row.log_probability(logit) + beam.score);
            }
        }
        // As `math::top` has it: of equal ones the first beam's, and of those the first token.
        all.sort_by(|a, b| {
            let in_place = (a.source, a.token).cmp(&(b.source, b.token));
            b.score.partial_cmp(&a.score).unwrap_or(in_place).then(in_place)
        });
        all.truncate(2 * self.beams);
        let last = all.get(2 * self.beams - 1)?;
        (last.score > edge).then_some(all)
    }

    fn candidate(&self, source: usize, token: u32, score: f32, raw: f32) -> Candidate {
        let beam = &self.running[source];
        Candidate {
            source,
            token,
            score,
            log_probability: beam.log_probability + f64::from(raw),
            ends: token == self.end || beam.ids.len() + 1 >= self.max_length,
        }
    }

    fn extend(&self, candidate: &Candidate, score: f32) -> Beam {
        let mut ids = self.running[candidate.source].ids.clone();
        ids.push(candidate.token);
        Beam { ids, score, log_probability: candidate.log_probability }
    }

    /// The best candidates that do not end: the rows that they continue, and the new beams.
    fn keep_running(&self, candidates: &[Candidate]) -> (Vec<usize>, Vec<Beam>) {
        let ended = |c: &Candidate| if c.ends { NEVER } else { -0.0 };
        let scores: Vec<f32> = candidates.iter().map(|c| c.score + ended(c)).collect();
        let best = math::top(&scores, self.beams);
        best.into_iter()
            .map(|n| {
                let candidate = &candidates[n];
                let row = if self.started { candidate.source } else { 0 };
                (row, self.extend(candidate, scores[n]))
            })
            .unzip()
    }

    /// Merges candidates that end with the finished sequences and keeps the best.
    ///
    /// Only the first `beams` candidates may end a sequence; the others are there as a reserve.
    fn keep_finished(&mut self, candidates: &[Candidate]) {
        let full =
            self.finished.iter().all(|f| f.done) && self.early_stopping == EarlyStopping::Always;
        let mut merged = self.finished.clone();
        for (place, candidate) in candidates.iter().enumerate() {
            let length = self.running[candidate.source].ids.len() + 1 - self.prompt;
            let done = candidate.ends && place < self.beams;
            let mut score = candidate.score / self.penalty(length);
            for closed in [full, !self.may_improve, !done] {
                if closed {
                    score += NEVER;
                }
            }
            let beam = self.extend(candidate, candidate.score);
            merged.push(Finished { beam, score, done });
        }
        let scores: Vec<f32> = merged.iter().map(|f| f.score).collect();
        self.finished =
            math::top(&scores, self.beams).into_iter().map(|n| merged[n].clone()).collect();
    }

    /// Whether the best running beam could, by the heuristic that was asked for, still beat the
    /// worst finished one. Once it could not, it never can.
    fn update_improvement(&mut self) {
        let Some(best) = self.running.first() else {
            self.may_improve = false;
            return;
        };
        let never = self.early_stopping == EarlyStopping::Never && self.length_penalty > 0.0;
        let length = if never { self.max_length } else { best.ids.len() } - self.prompt;
        let possible = best.score / self.penalty(length);
        let worst = self.finished.iter().map(|f| f.score).fold(f32::INFINITY, f32::min);
        let beats = self.finished.iter().any(|f| possible > if f.done { worst } else { NEVER });
        self.may_improve &= beats;
    }

    fn penalty(&self, length: usize) -> f32 {
        (length as f64).powf(f64::from(self.length_penalty)) as f32
    }

    fn take(&mut self) -> Vec<Sequence> {
        let mut finished = std::mem::take(&mut self.finished);
        finished.retain(|f| f.done);
        finished.truncate(self.returned);
        if finished.is_empty()
            && let Some(beam) = self.running.first()
        {
            // Only if constraints left nothing that could end.
            let score = beam.score / self.penalty(beam.ids.len() - self.prompt);
            finished.push(Finished { beam: beam.clone(), score, done: true });
        }
        finished.into_iter().map(|f| self.sequence(f)).collect()
    }

    fn sequence(&self, finished: Finished) -> Sequence {
        let ids = finished.beam.ids;
        let generated = ids.len() - self.prompt;
        let stopped = ids.last() == Some(&self.end) && generated > 0;
        Sequence {
            generated,
            confidence: confidence(finished.beam.log_probability, generated),
            score: Some(finished.score),
            finish_reason: if stopped { FinishReason::Stop } else { FinishReason::Length },
            ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::math::log_softmax;
    use super::super::script::{END, Script, VOCABULARY, decode, greedy, task};
    use super::*;

    fn beams(num_beams: usize) -> GenerationParams {
        GenerationParams { num_beams, num_return_sequences: num_beams, ..greedy() }
    }

    /// A model whose every next token depends on all tokens before.
    fn mixed(ids: &[u32]) -> Vec<(usize, f32)> {
        let hash = ids.iter().fold(7_u32, |h, id| h.wrapping_mul(31).wrapping_add(*id));
        let value = |t: u32| (hash.wrapping_mul(t * 2 + 1) >> 7) % 97;
        (0..VOCABULARY as u32).map(|t| (t as usize, value(t) as f32 / 40.0)).collect()
    }

    #[test]
    fn looks_past_the_greedy_choice() {
        // 3 is better now, but what follows 4 is certain.
        let model = |ids: &[u32]| match ids {
            [9] => vec![(3, 1.1), (4, 1.0)],
            [9, 3] => vec![(5, 1.0), (6, 1.0), (7, 1.0), (8, 1.0)],
            [9, 4] => vec![(5, 9.0)],
            _ => vec![(2, 9.0)],
        };
        let (found, reported) = decode(&mut Script::new(model), &beams(3), task(&[9]));
        assert_eq!(found[0].ids, [9, 4, 5, 2]);
        assert_eq!(found[0].finish_reason, FinishReason::Stop);
        assert!(reported.is_empty());
        assert!(found[0].score > found[1].score && found[1].score >= found[2].score);
    }

    #[test]
    fn a_wide_search_finds_the_best_of_all_sequences() {
        let params = GenerationParams { max_new_tokens: 2, length_penalty: 0.0, ..beams(10) };
        let (found, _) = decode(&mut Script::new(mixed), &params, task(&[9]));
        let logits = |ids: &[u32]| {
            let mut row = vec![0.0; VOCABULARY];
            mixed(ids).into_iter().for_each(|(token, value)| row[token] = value);
            log_softmax(&row)
        };
        let mut all: Vec<(f32, Vec<u32>)> = Vec::new();
        for (a, first) in logits(&[9]).into_iter().enumerate() {
            if a as u32 == END {
                all.push((first, vec![9, END]));
                continue;
            }
            for (b, second) in logits(&[9, a as u32]).into_iter().enumerate() {
                all.push((first + second, vec![9, a as u32, b as u32]));
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (ours, (score, ids)) in found.iter().zip(&all) {
            assert_eq!(&ours.ids, ids);
            assert!((ours.score.unwrap() - score).abs() < 1e-5);
        }
    }

    #[test]
    fn rows_continue_the_rows_they_say() {
        let mut script = Script::new(mixed);
        let params = GenerationParams { min_new_tokens: 4, ..beams(4) };
        let (found, _) = decode(&mut script, &params, task(&[9, 1]));
        // What the model was asked is what the search believes it has: each result without its
        // last token was a row of some step.
        for sequence in &found {
            let before = &sequence.ids[..sequence.ids.len() - 1];
            assert!(script.asked.iter().flatten().any(|row| row == before));
            assert!(sequence.generated >= 4 || sequence.finish_reason == FinishReason::Length);
        }
        assert_eq!(script.asked[0], [vec![9, 1]]);
        assert!(script.asked[1..].iter().all(|rows| rows.len() == 4));
    }

    #[test]
    fn the_length_penalty_prefers_long_or_short() {
        let model = |ids: &[u32]| vec![(2, 1.0), (3, 1.0 + ids.len() as f32 * 0.01)];
        let longest = |length_penalty| {
            let params = GenerationParams { length_penalty, ..beams(2) };
            decode(&mut Script::new(model), &params, task(&[9])).0[0].generated
        };
        assert_eq!(longest(-2.0), 1);
        assert_eq!(longest(3.0), 6);
    }

    #[test]
    fn early_stopping_ends_with_enough_finished_sequences() {
        let steps = |early_stopping| {
            let mut script = Script::new(|_| vec![(2, 1.0), (3, 1.0), (4, 0.9)]);
            let params = GenerationParams { early_stopping, length_penalty: 1.5, ..beams(2) };
            decode(&mut script, &params, task(&[9]));
            script.asked.len()
        };
        assert!(steps(EarlyStopping::Always) < steps(EarlyStopping::Never));
        assert!(steps(EarlyStopping::Always) <= steps(EarlyStopping::Heuristic));
    }

    #[test]
    fn sampled_beams_repeat_with_their_seed() {
        let sample = |seed| {
            let params = GenerationParams { do_sample: true, seed: Some(seed), ..beams(3) };
            decode(&mut Script::new(mixed), &params, task(&[9])).0
        };
        assert_eq!(sample(1), sample(1));
        assert!((2..20).any(|seed| sample(seed) != sample(1)));
    }

    #[test]
    fn constraints_that_leave_nothing_still_give_a_sequence() {
        let mut script = Script::new(|_| vec![(3, 1.0)]);
        let params = GenerationParams {
            no_repeat_ngram_size: 1,
            min_new_tokens: 20,
            max_new_tokens: 20,
            ..beams(2)
        };
        let (found, _) = decode(&mut script, &params, task(&[9]));
        assert!(!found.is_empty());
        assert!(found.iter().all(|sequence| sequence.generated > 0));
    }
}
