//! The texts of single tokens, for contracts that report probabilities.

use super::{Captioner, TokenSequence};
use cutline_error::Result;

/// How many tokens in front of one can change its text: cleaning up joins "do n't" and "man ' s".
const CONTEXT: usize = 4;

/// A generated token as text.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenText {
    /// What the token adds to the caption.
    pub text: String,
    /// The logarithm of its probability.
    pub log_probability: f32,
    /// The most probable tokens in its place with the logarithms of their probabilities, if they are
    /// wanted. A token without a text has its name in the vocabulary, such as `[SEP]`.
    pub alternatives: Vec<(String, f32)>,
}

impl Captioner {
    /// The text of each generated token of a caption. The texts make up the caption; tokens without a
    /// text, such as the last one, are left out.
    ///
    /// # Errors
    /// [`Internal`](cutline_error::ErrorKind::Internal): the tokenizer is broken.
    pub fn token_texts(&self, sequence: &TokenSequence) -> Result<Vec<TokenText>> {
        let TokenSequence { ids, log_probabilities, alternatives } = sequence;
        let prompt = ids.len().saturating_sub(log_probabilities.len());
        let mut before = self.decode(&ids[..prompt])?;
        let mut texts = Vec::with_capacity(log_probabilities.len());
        for (at, log_probability) in log_probabilities.iter().enumerate() {
            let end = prompt + at;
            let text = self.decode(&ids[..=end])?;
            let own = self.added(&before, &text, ids[end])?;
            before = text;
            if own.is_empty() {
                continue;
            }
            let others = alternatives.get(at).map_or(&[][..], |others| others);
            let alternatives = self.alternative_texts(&ids[..end], others)?;
            texts.push(TokenText { text: own, log_probability: *log_probability, alternatives });
        }
        Ok(texts)
    }

    /// What each of `others` would add to the tokens `before`.
    fn alternative_texts(
        &self,
        before: &[u32],
        others: &[(u32, f32)],
    ) -> Result<Vec<(String, f32)>> {
        let before = &before[before.len().saturating_sub(CONTEXT)..];
        let start = self.decode(before)?;
        let text = |&(id, log_probability): &(u32, f32)| {
            let whole = self.decode(&[before, &[id]].concat())?;
            let own = self.added(&start, &whole, id)?;
            let name = || self.inner.tokenizer.name(id).unwrap_or_default();
            Ok((if own.is_empty() { name() } else { own }, log_probability))
        };
        others.iter().map(text).collect()
    }

    /// What the token `id` has added to the text `before`, which has become `after`.
    fn added(&self, before: &str, after: &str, id: u32) -> Result<String> {
        match after.strip_prefix(before) {
            Some(more) => Ok(more.to_owned()),
            // Cleaning up has changed the text in front of it.
            None => self.decode(&[id]),
        }
    }
}
