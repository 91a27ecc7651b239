//! What another model of this process does with a photo when its captions are there: it puts them in the order in
//! which they match the photo, and embeds the photo for a library.

use super::{Caption, CaptionParams, CaptionStream, Captioner, Photo, ScoreMode, TextParams};
use crate::engine::Ability;
use cutline_error::Result;

/// A photo, for after its captions.
#[derive(Debug)]
pub(super) struct Afterwards {
    photo: Photo,
    scorer: Option<Captioner>,
    embedder: Option<Captioner>,
}

/// A photo as a model that compares texts and photos sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct PhotoEmbedding {
    /// The name of the model.
    pub model: String,
    /// The digest of its weights.
    pub digest: String,
    /// Of length 1; the dot product with the embedding of a text is their cosine.
    pub vector: Vec<f32>,
}

impl Captioner {
    /// Embeds photos whose captions are kept with `embedder` from now on, so that texts find them. Only the first
    /// call has an effect.
    ///
    /// # Errors
    /// [`Unsupported`](cutline_error::ErrorKind::Unsupported): the model cannot embed.
    pub fn embed_with(&self, embedder: &Self) -> Result<()> {
        embedder.require(Ability::Embed)?;
        let _ = self.inner.embedder.set(embedder.uncharged());
        Ok(())
    }

    /// What is to be done with `photo` when its captions are there.
    ///
    /// # Errors
    /// [`Unsupported`](cutline_error::ErrorKind::Unsupported): no model in this process scores texts; or there is
    /// no memory for a second copy of the photo.
    pub(super) fn afterwards(
        &self,
        photo: &Photo,
        params: &CaptionParams,
    ) -> Result<Option<Afterwards>> {
        let is_kept = self.inner.keeper.get().is_some() && params.question.is_none();
        let embedder = self.inner.embedder.get().filter(|_| is_kept).cloned();
        let scorer = match params.rerank {
            // The caption is what is paid for.
            true => Some(self.able(Ability::Score)?.uncharged()),
            false => None,
        };
        if scorer.is_none() && embedder.is_none() {
            return Ok(None);
        }
        Ok(Some(Afterwards { photo: photo.copy(self.budget())?, scorer, embedder }))
    }
}

/// The streams of photos, each with what is done when its captions are there.
pub(super) fn continued(
    streams: Vec<CaptionStream>,
    afterwards: Vec<Option<Afterwards>>,
) -> Vec<CaptionStream> {
    let each = streams.into_iter().zip(afterwards);
    each.map(|(stream, afterwards)| stream.continued(afterwards)).collect()
}

impl Afterwards {
    /// Puts the captions in order, and embeds the photo if they are new.
    ///
    /// # Errors
    /// Those of [`Captioner::score`]. Without an embedding there is still a caption.
    pub(super) async fn apply(
        self,
        caption: &mut Caption,
        is_new: bool,
    ) -> Result<Option<PhotoEmbedding>> {
        let Self { photo, scorer, embedder } = self;
        let embedder = embedder.filter(|_| is_new);
        let copy = match (&scorer, &embedder) {
            (Some(scorer), Some(_)) => Some(photo.copy(scorer.budget())?),
            _ => None,
        };
        let (scored, embedded) = match (scorer, embedder) {
            (Some(scorer), Some(embedder)) => {
                (Some((scorer, photo)), copy.map(|copy| (embedder, copy)))
            }
            (Some(scorer), None) => (Some((scorer, photo)), None),
            (None, embedder) => (None, embedder.map(|embedder| (embedder, photo))),
        };
        if let Some((scorer, photo)) = scored {
            order(&scorer, photo, caption).await?;
        }
        match embedded {
            Some((embedder, photo)) => Ok(embed(&embedder, photo).await),
            None => Ok(None),
        }
    }
}

/// Puts captions that match better before others, and those that match equally as they were.
async fn order(scorer: &Captioner, photo: Photo, caption: &mut Caption) -> Result<()> {
    if caption.fallback.is_some() {
        return Ok(());
    }
    let params = TextParams {
        texts: caption.captions.iter().map(|choice| choice.text.clone()).collect(),
        mode: ScoreMode::Itm,
        max_text_tokens: Some(scorer.info().max_positions),
        model: None,
    };
    let scored = scorer.score(photo, params).await?;
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

async fn embed(embedder: &Captioner, photo: Photo) -> Option<PhotoEmbedding> {
    let embedded = embedder.embed(Some(photo), TextParams::default()).await;
    let embedded = embedded.inspect_err(
        |error| tracing::warn!(%error, "a photo is not embedded, so texts do not find it"),
    );
    let info = embedder.info();
    let (model, digest) = (info.id.clone(), info.digest.clone());
    Some(PhotoEmbedding { model, digest, vector: embedded.ok()?.embedding? })
}
