//! A model for tests: a function from tokens to logits that records what it was asked.

use super::{Decoder, GenerationParams, Progress, Sequence, Task, TopLogits};

pub(super) const VOCABULARY: usize = 10;
pub(super) const END: u32 = 2;

/// Logits by a function; tokens that it does not name get −20.
pub(super) struct Script<F> {
    model: F,
    /// The rows of every step, as tokens from the start.
    pub(super) asked: Vec<Vec<Vec<u32>>>,
}

impl<F: Fn(&[u32]) -> Vec<(usize, f32)>> Script<F> {
    pub(super) fn new(model: F) -> Self {
        Self { model, asked: Vec::new() }
    }

    fn logits(&mut self, rows: &[Vec<u32>]) -> Vec<f32> {
        self.asked.push(rows.to_vec());
        let mut logits = vec![-20.0; rows.len() * VOCABULARY];
        for (row, chunk) in rows.iter().zip(logits.chunks_mut(VOCABULARY)) {
            for (token, value) in (self.model)(row) {
                chunk[token] = value;
            }
        }
        logits
    }
}

pub(super) fn greedy() -> GenerationParams {
    GenerationParams { max_new_tokens: 6, ..GenerationParams::default() }
}

pub(super) fn task(prompt: &[u32]) -> Task {
    let (prompt, written) = (prompt.to_vec(), Vec::new());
    Task { prompt, end: END, vocabulary: VOCABULARY, max_length: 30, written }
}

/// Decodes to the end; the sequences, and the tokens that were reported on the way. A second decoder
/// is given no more than the best of every row, where that is enough, and must do the same.
pub(super) fn decode<F: Fn(&[u32]) -> Vec<(usize, f32)>>(
    script: &mut Script<F>,
    params: &GenerationParams,
    task: Task,
) -> (Vec<Sequence>, Vec<u32>) {
    let mut rows = vec![task.prompt.clone()];
    let mut decoder = Decoder::new(params, task.clone());
    let mut by_best = Decoder::new(params, task);
    let mut reported = Vec::new();
    loop {
        let logits = script.logits(&rows);
        let step = decoder.advance(&logits);
        let best = |count| logits.chunks(VOCABULARY).map(|row| TopLogits::of(row, count)).collect();
        let best: Option<Vec<TopLogits>> = by_best.wanted().map(best);
        let same = best.and_then(|best| by_best.advance_by_best(&best));
        assert_eq!(same.unwrap_or_else(|| by_best.advance(&logits)), step);
        reported.extend(step.newest);
        match step.progress {
            Progress::Finished(sequences) => return (sequences, reported),
            Progress::Continue { tokens, sources } => {
                assert_eq!(tokens.len(), sources.len());
                rows = sources.iter().map(|&source| rows[source].clone()).collect();
                for (row, token) in rows.iter_mut().zip(tokens) {
                    row.push(token);
                }
            }
        }
    }
}
