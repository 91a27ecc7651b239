//! A model for tests: a function from tokens to logits that records its input.

use super::{Decoder, DecoderInput, GenerationParams, Progress, Sequence, TopLogits};

pub(super) const VOCABULARY: usize = 10;
pub(super) const END: u32 = 2;

/// A model whose logits are those of a function, and −20 for tokens that it does not list.
pub(super) struct Script<F> {
    model: F,
    /// The rows of every step, with all tokens so far.
    pub(super) inputs: Vec<Vec<Vec<u32>>>,
}

impl<F: Fn(&[u32]) -> Vec<(usize, f32)>> Script<F> {
    pub(super) fn new(model: F) -> Self {
        Self { model, inputs: Vec::new() }
    }

    fn logits(&mut self, rows: &[Vec<u32>]) -> Vec<f32> {
        self.inputs.push(rows.to_vec());
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

pub(super) fn input(prompt: &[u32]) -> DecoderInput {
    DecoderInput::new(prompt.to_vec(), END, VOCABULARY, 30)
}

/// Decodes to the end. Returns the sequences and the tokens that were reported on the way. A second
/// decoder gets only the greatest logits of every row, if these are enough, and must do the same.
pub(super) fn decode<F: Fn(&[u32]) -> Vec<(usize, f32)>>(
    script: &mut Script<F>,
    params: &GenerationParams,
    input: DecoderInput,
) -> (Vec<Sequence>, Vec<u32>) {
    let mut rows = vec![input.prompt.clone()];
    let mut decoder = Decoder::new(params, input.clone());
    let mut second = Decoder::new(params, input);
    let mut reported = Vec::new();
    loop {
        let logits = script.logits(&rows);
        let step = decoder.advance(&logits);
        let top = |count| logits.chunks(VOCABULARY).map(|row| TopLogits::of(row, count)).collect();
        let top: Option<Vec<TopLogits>> = second.top_logits_needed().map(top);
        let same = top.and_then(|top| second.advance_with_top_logits(&top));
        assert_eq!(same.unwrap_or_else(|| second.advance(&logits)), step);
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
