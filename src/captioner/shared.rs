//! Answers in the cache that several servers share.
//!
//! It is asked behind the single flight, so each server asks once for a caption, however many want it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::answer::{Answer, ComputedAnswer};
use super::keys::CaptionKeys;
use super::work::Beginning;
use super::{CachePolicy, CaptionParams, Captioner, Choice, ImageInfo, TokenSequence};
use crate::cache::{CacheScope, Key, Shared};
use crate::engine::FinishReason;
use cutline_image::Colors;

/// An answer as it is stored: everything about the photo but its hash and its size, which the reader has.
#[derive(Debug, Serialize, Deserialize)]
struct StoredAnswer {
    choices: Vec<StoredChoice>,
    format: String,
    width: usize,
    height: usize,
    colors: Colors,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredChoice {
    text: String,
    confidence: f32,
    tokens: usize,
    stopped: bool,
    ids: Vec<u32>,
    log_probabilities: Vec<f32>,
    alternatives: Vec<Vec<(u32, f32)>>,
}

/// The shared cache, and the keys that all servers agree on.
#[derive(Debug)]
pub(super) struct SharedAnswers {
    cache: Shared,
    keys: CaptionKeys,
}

/// Where an answer may be in the shared cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedKey {
    pub(super) key: Key,
    /// Whether a stored answer may be taken; otherwise it is only replaced.
    pub(super) read: bool,
}

impl Captioner {
    /// Shares answers with other servers from now on. Only the first call has an effect.
    pub fn share_with(&self, cache: Shared, scope: CacheScope) {
        let keys = CaptionKeys::shared(&self.inner, scope);
        let _ = self.inner.shared.set(SharedAnswers { cache, keys });
    }

    /// The key of an answer; `None` if it is not shared: there is no such cache, the request bypasses it,
    /// or samples without a seed.
    pub(super) fn shared_key(
        &self,
        hash: &blake3::Hash,
        begin_with: &Beginning,
        params: &CaptionParams,
    ) -> Option<SharedKey> {
        let read = match params.cache {
            CachePolicy::Use => true,
            CachePolicy::Refresh => false,
            CachePolicy::Bypass => return None,
        };
        let SharedAnswers { keys, .. } = self.inner.shared.get()?;
        // Versions of prompts are those of a library, and no server with one shares.
        if params.recipe.is_some() {
            return None;
        }
        Some(SharedKey { key: keys.answer(hash, begin_with, &params.generation(), None)?, read })
    }

    /// The answer that another server, or this one before, has stored.
    pub(super) async fn find_shared(
        &self,
        key: SharedKey,
        hash: &blake3::Hash,
        size_bytes: usize,
    ) -> Option<ComputedAnswer> {
        // What a library keeps of a photo is not stored with the answer.
        if !key.read || self.inner.keeper.get().is_some() {
            return None;
        }
        let bytes = self.inner.shared.get()?.cache.get(&key.key).await?;
        let stored: StoredAnswer = postcard::from_bytes(&bytes).ok()?;
        let answer = Arc::new(stored.into_answer(hash, size_bytes)?);
        Some(ComputedAnswer {
            answer,
            appearance: None,
            vision: None,
            shared: true,
            decode: Duration::ZERO,
            queued: Duration::ZERO,
            inference: Duration::ZERO,
            batch_size: 0,
        })
    }

    /// Stores an answer that was computed here.
    pub(super) fn store_shared(&self, key: SharedKey, computed: &ComputedAnswer) {
        if let Some(SharedAnswers { cache, .. }) = self.inner.shared.get()
            && !computed.shared
            && let Ok(bytes) = postcard::to_stdvec(&StoredAnswer::of(&computed.answer))
        {
            cache.put(&key.key, &bytes);
        }
    }
}

impl StoredAnswer {
    fn of(answer: &Answer) -> Self {
        let Answer { choices, image, colors, .. } = answer;
        let choice = |choice: &Choice| {
            let TokenSequence { ids, log_probabilities, alternatives } = &choice.sequence;
            StoredChoice {
                text: choice.text.clone(),
                confidence: choice.confidence,
                tokens: choice.tokens,
                stopped: choice.finish_reason == FinishReason::Stop,
                ids: ids.clone(),
                log_probabilities: log_probabilities.clone(),
                alternatives: alternatives.iter().map(|one| one.to_vec()).collect(),
            }
        };
        Self {
            choices: choices.iter().map(choice).collect(),
            format: image.format.clone(),
            width: image.width,
            height: image.height,
            colors: colors.clone(),
        }
    }

    /// `None` if there is no choice, which is never stored.
    fn into_answer(self, hash: &blake3::Hash, size_bytes: usize) -> Option<Answer> {
        let choice = |stored: StoredChoice| Choice {
            text: stored.text,
            confidence: stored.confidence,
            tokens: stored.tokens,
            finish_reason: if stored.stopped { FinishReason::Stop } else { FinishReason::Length },
            matching: None,
            sequence: TokenSequence {
                ids: stored.ids,
                log_probabilities: stored.log_probabilities,
                alternatives: stored.alternatives.into_iter().map(Into::into).collect(),
            },
        };
        let choices: Vec<Choice> = self.choices.into_iter().map(choice).collect();
        let Self { format, width, height, colors, .. } = self;
        let hash = format!("blake3:{}", hash.to_hex());
        let image = ImageInfo { hash, format, width, height, size_bytes };
        (!choices.is_empty()).then_some(Answer { choices, image, colors, model: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutline_image::{DominantColor, Mood};

    #[test]
    fn an_answer_is_the_same_after_it_was_stored() {
        let hash = blake3::hash(b"photo");
        let colors = vec![DominantColor {
            hex: "#ff0000".into(),
            rgb: [255, 0, 0],
            name: "red".into(),
            fraction: 1.0,
        }];
        let mood = Mood::of(&colors);
        let choice = |text: &str, finish_reason| Choice {
            text: text.into(),
            confidence: 0.1 + 0.2,
            tokens: 3,
            finish_reason,
            matching: None,
            sequence: TokenSequence {
                ids: vec![1, 30_521],
                log_probabilities: vec![-0.1, f32::NEG_INFINITY],
                alternatives: vec![vec![(1, -0.1), (2, -3.0)].into(), Vec::new().into()],
            },
        };
        let answer = Answer {
            choices: vec![
                choice("ein Käfer", FinishReason::Stop),
                choice("a", FinishReason::Length),
            ],
            image: ImageInfo {
                hash: format!("blake3:{}", hash.to_hex()),
                format: "png".into(),
                width: 3,
                height: 4,
                size_bytes: 5,
            },
            colors: Colors { colors, mood },
            model: None,
        };
        let bytes = postcard::to_stdvec(&StoredAnswer::of(&answer)).unwrap();
        let stored: StoredAnswer = postcard::from_bytes(&bytes).unwrap();
        let back = stored.into_answer(&hash, 5).unwrap();
        assert_eq!(
            (&back.choices, &back.image, &back.colors),
            (&answer.choices, &answer.image, &answer.colors)
        );
        for length in 0..bytes.len() {
            // Never reached, because the MAC covers all of it; and no reason to panic.
            assert!(postcard::from_bytes::<StoredAnswer>(&bytes[..length]).is_err());
        }
    }
}
