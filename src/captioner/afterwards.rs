//! Captions in the order in which another model says that they match the photo.

use super::{Caption, CaptionParams, CaptionStream, Captioner, Photo, ScoreMode, TextParams};
use crate::engine::Ability;
use cutline_error::Result;

/// Puts the captions of one photo in order.
#[derive(Debug)]
pub(super) struct Rerank {
    scorer: Captioner,
    photo: Photo,
}

impl Captioner {
    /// What puts the captions of `photo` in order, if that is wanted.
    ///
    /// # Errors
    /// [`Unsupported`](cutline_error::ErrorKind::Unsupported): no model in this process scores texts; or there is
    /// no memory for a second copy of the photo.
    pub(super) fn rerank(&self, photo: &Photo, params: &CaptionParams) -> Result<Option<Rerank>> {
        if !params.rerank {
            return Ok(None);
        }
        // The caption is what is paid for.
        let scorer = self.able(Ability::Score)?.uncharged();
        Ok(Some(Rerank { scorer, photo: photo.copy(self.budget())? }))
    }
}

/// The streams of photos, each with what puts its captions in order.
pub(super) fn reranked(
    streams: Vec<CaptionStream>,
    reranks: Vec<Option<Rerank>>,
) -> Vec<CaptionStream> {
    streams.into_iter().zip(reranks).map(|(stream, rerank)| stream.reranked(rerank)).collect()
}

impl Rerank {
    /// Puts captions that match better before others, and those that match equally as they were.
    ///
    /// # Errors
    /// Those of [`Captioner::score`].
    pub(super) async fn apply(self, caption: &mut Caption) -> Result<()> {
        if caption.fallback.is_some() {
            return Ok(());
        }
        let params = TextParams {
            texts: caption.captions.iter().map(|choice| choice.text.clone()).collect(),
            mode: ScoreMode::Itm,
            max_text_tokens: Some(self.scorer.info().max_positions),
            model: None,
        };
        let scored = self.scorer.score(self.photo, params).await?;
        for (choice, score) in caption.captions.iter_mut().zip(scored.scores) {
            choice.matching = score.matching;
        }
        caption.captions.sort_by(|a, b| {
            let [a, b] = [a, b].map(|choice| choice.matching.unwrap_or_default());
            b.total_cmp(&a)
        });
        if let Some(best) = caption.captions.first() {
            caption.caption.clone_from(&best.text);
        }
        Ok(())
    }
}
