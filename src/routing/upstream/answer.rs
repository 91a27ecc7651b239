//! What is understood of an answer so far.

use std::time::Duration;

use crate::captioner::Foreign;
use crate::engine::FinishReason;
use cutline_route::{Failure, Usage};

/// The longest text of an answer in bytes. What is longer is no caption.
const MAX_TEXT_BYTES: usize = 8 * 1024;
/// The longest name of a model that is passed on.
const MAX_NAME: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Best first.
    pub(super) texts: Vec<String>,
    pub(super) model: Option<String>,
    pub(super) finish: Option<FinishReason>,
    pub(super) usage: Usage,
    /// The backend has said that it is complete.
    pub(super) ended: bool,
}

impl Answer {
    /// Adds to the text of a stream. Returns whether it has grown.
    pub(super) fn add(&mut self, piece: &str) -> Result<bool, Failure> {
        if self.texts.is_empty() {
            self.texts.push(String::new());
        }
        let text = &mut self.texts[0];
        if text.len() + piece.len() > MAX_TEXT_BYTES {
            return Err(Failure::BadAnswer);
        }
        // Many models begin with a space or a line break.
        let piece = if text.is_empty() { piece.trim_start() } else { piece };
        text.extend(piece.chars().filter(|c| !c.is_control() || *c == '\n'));
        Ok(!piece.is_empty())
    }

    /// Adds a whole text.
    pub(super) fn push(&mut self, text: &str) -> Result<(), Failure> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(Failure::BadAnswer);
        }
        let shown = text.trim().chars().filter(|c| !c.is_control() || *c == '\n');
        self.texts.push(shown.collect());
        Ok(())
    }

    pub(super) fn so_far(&self) -> &str {
        self.texts.first().map_or("", |text| text.trim_end())
    }

    /// The answer, if it is complete and says anything.
    pub(super) fn finish(self, usual: &str, took: Duration) -> Result<Foreign, Failure> {
        let texts: Vec<String> = self.texts.iter().map(|text| text.trim().to_owned()).collect();
        let texts: Vec<String> = texts.into_iter().filter(|text| !text.is_empty()).collect();
        if !self.ended || texts.is_empty() {
            return Err(Failure::BadAnswer);
        }
        let named = self.model.filter(|name| !name.is_empty() && name.len() <= MAX_NAME);
        let named = named.filter(|name| !name.chars().any(char::is_control));
        let tokens = self.usage.output.unwrap_or(0);
        Ok(Foreign {
            texts,
            model: named.unwrap_or_else(|| usual.to_owned()),
            finish_reason: self.finish.unwrap_or(FinishReason::Stop),
            tokens: usize::try_from(tokens).unwrap_or(usize::MAX),
            took,
        })
    }
}
