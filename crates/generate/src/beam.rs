//! Beam search, step by step like `_beam_search` in `generation/utils.py` of transformers 5.23, which
//! also explains its peculiarities. With `do_sample` the candidates of a step are drawn at random.

use super::params::{Alternatives, EarlyStopping, FinishReason, GenerationParams, Sequence};
use super::processors::LogitsProcessor;
use super::random::{Random, fresh_seed};
use super::rules::Rules;
use super::top_logits::TopLogits;
use super::{DecoderInput, Progress, Step, confidence, math};

/// Worse than any real score; transformers adds it to scores in f32.
const WORST: f32 = -1.0e9;

/// The search for the best sequences of an image.
#[derive(Debug)]
pub(super) struct BeamSearch {
    rules: Rules,
    beams: usize,
    returned: usize,
    length_penalty: f32,
    early_stopping: EarlyStopping,
    random: Option<Random>,
    /// The unfinished beams, best first.
    running: Vec<Beam>,
    /// The most probable tokens after each of them, if they are wanted.
    alternatives: Vec<Alternatives>,
    /// The best finished sequences, best first. Placeholders are not `done`.
    finished: Vec<FinishedBeam>,
    /// Whether a running beam may still beat the worst finished one.
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
    /// Of each generated token.
    log_probabilities: Vec<f32>,
    /// For each generated token.
    alternatives: Vec<Alternatives>,
}

#[derive(Debug, Clone)]
struct FinishedBeam {
    beam: Beam,
    /// The score of the beam, divided by its length to the power of the length penalty.
    score: f32,
    done: bool,
}

/// A beam and one more token.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    source: usize,
    token: u32,
    score: f32,
    /// Of the token, before any processor.
    raw: f32,
    log_probability: f64,
    /// Whether the sequence ends here, by its last token or its length.
    ends: bool,
}

impl BeamSearch {
    pub(super) fn new(params: &GenerationParams, input: DecoderInput) -> Self {
        let beam = |score| Beam {
            ids: input.prompt.clone(),
            score,
            log_probability: 0.0,
            log_probabilities: Vec::new(),
            alternatives: Vec::new(),
        };
        let beams = params.num_beams;
        // Only the first beam counts at the start; otherwise all would be the same.
        let running = (0..beams).map(|n| beam(if n == 0 { 0.0 } else { WORST })).collect();
        let nothing = FinishedBeam { beam: beam(WORST), score: WORST, done: false };
        Self {
            rules: Rules::new(params, &input),
            beams,
            returned: params.num_return_sequences,
            length_penalty: params.length_penalty,
            early_stopping: params.early_stopping,
            random: params
                .do_sample
                .then(|| Random::new(params.seed.unwrap_or_else(fresh_seed), 0)),
            running,
            alternatives: Vec::new(),
            finished: vec![nothing; beams],
            may_improve: true,
            started: false,
        }
    }

    /// As many as there are candidates, one more in case one is `end` and forbidden, and one more to
    /// exclude a tie.
    pub(super) fn top_logits_needed(&self) -> Option<usize> {
        self.rules.top_logits(2 * self.beams + 2)
    }

    pub(super) fn advance(&mut self, logits: &[f32]) -> Step {
        let candidates = self.candidates(logits);
        self.proceed(&candidates)
    }

    pub(super) fn advance_with_top_logits(&mut self, top: &[TopLogits]) -> Option<Step> {
        let candidates = self.top_candidates(top)?;
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
            Progress::Finished(self.take_sequences())
        } else {
            let last = |beam: &Beam| beam.ids.last().copied().unwrap_or(self.rules.end);
            Progress::Continue {
                tokens: self.running.iter().map(last).collect(),
                sources: sources.0,
            }
        };
        Step { newest: None, progress }
    }

    /// The best (or drawn) continuations of all beams together: two for every beam, so that enough
    /// remain if every beam ends.
    fn candidates(&mut self, logits: &[f32]) -> Vec<Candidate> {
        let size = self.rules.vocabulary;
        let mut raw = Vec::with_capacity(self.beams * size);
        let mut scores = Vec::with_capacity(self.beams * size);
        self.alternatives.clear();
        for (index, beam) in self.running.iter().enumerate() {
            let row = if self.started { index } else { 0 };
            let logits = &logits[row * size..][..size];
            self.alternatives.extend(self.rules.alternatives(logits));
            let log_probabilities = math::log_softmax(logits);
            let from = scores.len();
            scores.extend_from_slice(&log_probabilities);
            self.rules.chain.process(&beam.ids, &mut scores[from..]);
            for score in &mut scores[from..] {
                *score += beam.score;
            }
            raw.extend(log_probabilities);
        }
        let count = 2 * self.beams;
        let chosen = match &mut self.random {
            Some(random) => random.draw_distinct(&scores, count),
            None => math::top_indices(&scores, count),
        };
        chosen
            .into_iter()
            .map(|flat| self.candidate(flat / size, (flat % size) as u32, scores[flat], raw[flat]))
            .collect()
    }

    /// [`candidates`](Self::candidates) from the greatest logits of every row; `None` if another token
    /// may be a candidate.
    fn top_candidates(&self, top: &[TopLogits]) -> Option<Vec<Candidate>> {
        let mut all = Vec::new();
        let mut threshold = f32::NEG_INFINITY;
        for (index, beam) in self.running.iter().enumerate() {
            let row = top.get(if self.started { index } else { 0 })?;
            let forbidden = self.rules.min_length.forbids(&beam.ids);
            for &(token, logit) in &row.tokens {
                if Some(token) != forbidden {
                    let raw = row.log_probability(logit);
                    all.push(self.candidate(index, token, raw + beam.score, raw));
                }
            }
            if let Some(logit) = row.threshold() {
                threshold = threshold.max(row.log_probability(logit) + beam.score);
            }
        }
        // Ties as in `math::top_indices`: by beam, then by token.
        all.sort_by(|a, b| {
            let by_position = (a.source, a.token).cmp(&(b.source, b.token));
            b.score.partial_cmp(&a.score).unwrap_or(by_position).then(by_position)
        });
        all.truncate(2 * self.beams);
        let last = all.get(2 * self.beams - 1)?;
        (last.score > threshold).then_some(all)
    }

    fn candidate(&self, source: usize, token: u32, score: f32, raw: f32) -> Candidate {
        let beam = &self.running[source];
        Candidate {
            source,
            token,
            score,
            raw,
            log_probability: beam.log_probability + f64::from(raw),
            ends: self.rules.finish_reason(token, beam.ids.len() + 1).is_some(),
        }
    }

    fn extend(&self, candidate: &Candidate, score: f32) -> Beam {
        let mut beam = self.running[candidate.source].clone();
        beam.ids.push(candidate.token);
        beam.log_probabilities.push(candidate.raw);
        beam.alternatives.extend(self.alternatives.get(candidate.source).cloned());
        Beam { score, log_probability: candidate.log_probability, ..beam }
    }

    /// The best candidates that do not end: the rows that they continue, and the new beams.
    fn keep_running(&self, candidates: &[Candidate]) -> (Vec<usize>, Vec<Beam>) {
        let ended = |c: &Candidate| if c.ends { WORST } else { -0.0 };
        let scores: Vec<f32> = candidates.iter().map(|c| c.score + ended(c)).collect();
        let best = math::top_indices(&scores, self.beams);
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
    /// Only the first `beams` candidates may end a sequence; the others are a reserve.
    fn keep_finished(&mut self, candidates: &[Candidate]) {
        let full =
            self.finished.iter().all(|f| f.done) && self.early_stopping == EarlyStopping::Always;
        let mut merged = self.finished.clone();
        for (rank, candidate) in candidates.iter().enumerate() {
            let length = self.rules.generated(self.running[candidate.source].ids.len() + 1);
            let done = candidate.ends && rank < self.beams;
            let mut score = candidate.score / self.penalty(length);
            for closed in [full, !self.may_improve, !done] {
                if closed {
                    score += WORST;
                }
            }
            let beam = self.extend(candidate, candidate.score);
            merged.push(FinishedBeam { beam, score, done });
        }
        let scores: Vec<f32> = merged.iter().map(|f| f.score).collect();
        self.finished =
            math::top_indices(&scores, self.beams).into_iter().map(|n| merged[n].clone()).collect();
    }

    /// Updates whether the best running beam could, by the chosen heuristic, still beat the worst
    /// finished one. Once it could not, it never can.
    fn update_improvement(&mut self) {
        let Some(best) = self.running.first() else {
            self.may_improve = false;
            return;
        };
        let never = self.early_stopping == EarlyStopping::Never && self.length_penalty > 0.0;
        let length = if never { self.rules.max_length } else { best.ids.len() };
        let possible = best.score / self.penalty(self.rules.generated(length));
        let worst = self.finished.iter().map(|f| f.score).fold(f32::INFINITY, f32::min);
        let beats = self.finished.iter().any(|f| possible > if f.done { worst } else { WORST });
        self.may_improve &= beats;
    }

    fn penalty(&self, length: usize) -> f32 {
        (length as f64).powf(f64::from(self.length_penalty)) as f32
    }

    fn take_sequences(&mut self) -> Vec<Sequence> {
        let mut finished = std::mem::take(&mut self.finished);
        finished.retain(|f| f.done);
        finished.truncate(self.returned);
        if finished.is_empty()
            && let Some(beam) = self.running.first()
        {
            // Only if constraints left no token that could end a sequence.
            let score = beam.score / self.penalty(self.rules.generated(beam.ids.len()));
            finished.push(FinishedBeam { beam: beam.clone(), score, done: true });
        }
        finished.into_iter().map(|f| self.sequence(f)).collect()
    }

    fn sequence(&self, finished: FinishedBeam) -> Sequence {
        let ids = finished.beam.ids;
        let generated = self.rules.generated(ids.len());
        let stopped = ids.last() == Some(&self.rules.end) && generated > 0;
        Sequence {
            generated,
            confidence: confidence(finished.beam.log_probability, generated),
            log_probabilities: finished.beam.log_probabilities,
            alternatives: finished.beam.alternatives,
            score: Some(finished.score),
            finish_reason: if stopped { FinishReason::Stop } else { FinishReason::Length },
            ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::math::log_softmax;
    use super::super::script::{END, Script, VOCABULARY, decode, greedy, input};
    use super::*;

    fn beams(num_beams: usize) -> GenerationParams {
        GenerationParams { num_beams, num_return_sequences: num_beams, ..greedy() }
    }

    /// A model whose logits depend on all tokens so far.
    fn mixed(ids: &[u32]) -> Vec<(usize, f32)> {
        let hash = ids.iter().fold(7_u32, |h, id| h.wrapping_mul(31).wrapping_add(*id));
        let value = |t: u32| (hash.wrapping_mul(t * 2 + 1) >> 7) % 97;
        (0..VOCABULARY as u32).map(|t| (t as usize, value(t) as f32 / 40.0)).collect()
    }

    #[test]
    fn beam_search_finds_more_than_the_greedy_choice() {
        // 3 is more probable than 4, but only 4 has a certain continuation.
        let model = |ids: &[u32]| match ids {
            [9] => vec![(3, 1.1), (4, 1.0)],
            [9, 3] => vec![(5, 1.0), (6, 1.0), (7, 1.0), (8, 1.0)],
            [9, 4] => vec![(5, 9.0)],
            _ => vec![(2, 9.0)],
        };
        let (found, reported) = decode(&mut Script::new(model), &beams(3), input(&[9]));
        assert_eq!(found[0].ids, [9, 4, 5, 2]);
        assert_eq!(found[0].finish_reason, FinishReason::Stop);
        assert!(reported.is_empty());
        assert!(found[0].score > found[1].score && found[1].score >= found[2].score);
    }

    #[test]
    fn a_wide_search_finds_the_best_of_all_sequences() {
        let params = GenerationParams { max_new_tokens: 2, length_penalty: 0.0, ..beams(10) };
        let (found, _) = decode(&mut Script::new(mixed), &params, input(&[9]));
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
            let sum: f32 = ours.log_probabilities.iter().sum();
            assert_eq!(ours.log_probabilities.len(), ours.generated);
            assert!((sum - score).abs() < 1e-5, "{ours:?}");
        }
    }

    #[test]
    fn alternatives_belong_to_the_tokens_of_their_sequence() {
        let params = GenerationParams { alternatives: 4, ..beams(4) };
        let (found, _) = decode(&mut Script::new(mixed), &params, input(&[9, 1]));
        for sequence in &found {
            assert_eq!(sequence.alternatives.len(), sequence.generated);
            for (at, own) in sequence.alternatives.iter().enumerate() {
                let mut logits = vec![0.0; VOCABULARY];
                let before = &sequence.ids[..2 + at];
                mixed(before).into_iter().for_each(|(token, value)| logits[token] = value);
                assert_eq!(**own, *math::most_probable(&logits, 4), "{at} of {sequence:?}");
                let chosen = (sequence.ids[2 + at], sequence.log_probabilities[at]);
                assert!(own[3].1 > chosen.1 || own.contains(&chosen), "{at} of {sequence:?}");
            }
        }
    }

    #[test]
    fn rows_continue_their_sources() {
        let mut script = Script::new(mixed);
        let params = GenerationParams { min_new_tokens: 4, ..beams(4) };
        let (found, _) = decode(&mut script, &params, input(&[9, 1]));
        // The model has read what the search returns: each result without its last token was a row
        // of some step.
        for sequence in &found {
            let before = &sequence.ids[..sequence.ids.len() - 1];
            assert!(script.inputs.iter().flatten().any(|row| row == before));
            assert!(sequence.generated >= 4 || sequence.finish_reason == FinishReason::Length);
        }
        assert_eq!(script.inputs[0], [vec![9, 1]]);
        assert!(script.inputs[1..].iter().all(|rows| rows.len() == 4));
    }

    #[test]
    fn the_length_penalty_prefers_long_or_short_sequences() {
        let model = |ids: &[u32]| vec![(2, 1.0), (3, 1.0 + ids.len() as f32 * 0.01)];
        let longest = |length_penalty| {
            let params = GenerationParams { length_penalty, ..beams(2) };
            decode(&mut Script::new(model), &params, input(&[9])).0[0].generated
        };
        assert_eq!(longest(-2.0), 1);
        assert_eq!(longest(3.0), 6);
    }

    #[test]
    fn early_stopping_ends_with_enough_finished_sequences() {
        let steps = |early_stopping| {
            let mut script = Script::new(|_| vec![(2, 1.0), (3, 1.0), (4, 0.9)]);
            let params = GenerationParams { early_stopping, length_penalty: 1.5, ..beams(2) };
            decode(&mut script, &params, input(&[9]));
            script.inputs.len()
        };
        assert!(steps(EarlyStopping::Always) < steps(EarlyStopping::Never));
        assert!(steps(EarlyStopping::Always) <= steps(EarlyStopping::Heuristic));
    }

    #[test]
    fn a_seed_reproduces_sampled_beams() {
        let sample = |seed| {
            let params = GenerationParams { do_sample: true, seed: Some(seed), ..beams(3) };
            decode(&mut Script::new(mixed), &params, input(&[9])).0
        };
        assert_eq!(sample(1), sample(1));
        assert!((2..20).any(|seed| sample(seed) != sample(1)));
    }

    #[test]
    fn impossible_constraints_still_give_a_sequence() {
        let mut script = Script::new(|_| vec![(3, 1.0)]);
        let params = GenerationParams {
            no_repeat_ngram_size: 1,
            min_new_tokens: 20,
            max_new_tokens: 20,
            ..beams(2)
        };
        let (found, _) = decode(&mut script, &params, input(&[9]));
        assert!(!found.is_empty());
        assert!(found.iter().all(|sequence| sequence.generated > 0));
    }
}
