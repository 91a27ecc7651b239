//! Answers of models elsewhere: what they get, and what becomes of their texts here.

use std::sync::Arc;
use std::time::Duration;

use super::answer::Answer;
use super::recipe::chained;
use super::style::styled;
use super::{
    Appearance, CachePolicy, CacheState, Caption, CaptionParams, Captioner, CaptionerInner, Choice,
    ImageInfo, KeptParameters, Photo, Preview, RoutedCaption, Timings, TokenSequence,
};
use crate::cache::Key;
use crate::engine::FinishReason;
use crate::metrics::{CacheName, Lookup, milliseconds};
use cutline_error::Result;
use cutline_image::{Colors, DecodeLimits, ImageHeader, decode_for, jpeg_within};

/// The longer side of a photo that is sent elsewhere, in pixels.
pub const SENT_SIDE: usize = 1024;

/// What a caption of a model elsewhere consists of.
#[derive(Debug, Clone)]
pub struct Foreign {
    /// The texts, best first, at least one.
    pub texts: Vec<String>,
    /// The name of the model that wrote them.
    pub model: String,
    /// Why the first one ends.
    pub finish_reason: FinishReason,
    /// Tokens of the answer; 0 if that is not known.
    pub tokens: usize,
    /// How long the answer took.
    pub took: Duration,
}

/// A photo that can be sent elsewhere.
#[derive(Debug)]
pub struct SendablePhoto {
    /// A JPEG file without metadata.
    pub jpeg: Vec<u8>,
    /// The photo itself.
    pub image: ImageInfo,
    /// Its colours and mood.
    pub colors: Colors,
    /// A smaller one for people, if captions are kept.
    pub(super) preview: Option<Arc<Preview>>,
    /// How long this took.
    pub took: Duration,
}

/// What the answer of a model elsewhere is cached by.
#[derive(Debug, Clone, Copy)]
pub struct ForeignKey(Key);

impl Captioner {
    /// Makes of `photo` what may be sent elsewhere: scaled down, and encoded again without metadata.
    ///
    /// # Errors
    /// The photo cannot be decoded.
    pub async fn sendable(&self, photo: Photo) -> Result<SendablePhoto> {
        let begin = std::time::Instant::now();
        let size = photo.len();
        // The copies of the pixels after scaling.
        let scaled = |_: &ImageHeader| 8 * (SENT_SIDE * SENT_SIDE) as u64;
        let inner = Arc::clone(&self.inner);
        let work = move |bytes: &[u8], limits: &DecodeLimits| {
            let hash = blake3::hash(bytes);
            let decoded = decode_for(bytes, limits, SENT_SIDE, SENT_SIDE)?;
            let jpeg = jpeg_within(&decoded, SENT_SIDE)?;
            let preview = inner.preview(&decoded)?;
            Ok((jpeg, ImageInfo::of(&hash, size, &decoded), Colors::of(&decoded), preview))
        };
        let (jpeg, image, colors, preview) = self.inner.decoders.run(photo, scaled, work).await?;
        Ok(SendablePhoto { jpeg, image, colors, preview, took: begin.elapsed() })
    }

    /// The key of the answer of a model elsewhere about the image with this hash. `asked` says who was asked
    /// for what, in all that an answer depends on.
    #[must_use]
    pub fn foreign_key(
        &self,
        image: &blake3::Hash,
        asked: &str,
        params: &CaptionParams,
    ) -> ForeignKey {
        ForeignKey(self.inner.keys.foreign(image, asked, params.recipe.as_deref()))
    }

    /// The cached answer of a model elsewhere.
    #[must_use]
    pub fn foreign_cached(
        &self,
        key: &ForeignKey,
        params: &CaptionParams,
        waited: Duration,
    ) -> Option<RoutedCaption> {
        let CaptionerInner { answers, metrics, .. } = &*self.inner;
        let answer = answers.get(&key.0).filter(|_| params.cache == CachePolicy::Use)?;
        metrics.lookup(CacheName::Answers, Lookup::Hit);
        let timings = Timings { total_ms: milliseconds(waited), ..Timings::default() };
        Some(self.foreign(&answer, params, CacheState::Hit, timings))
    }

    /// The answer of a model elsewhere in the shape of an answer of this one. It is cached if there is a key.
    #[must_use]
    pub fn foreign_caption(
        &self,
        foreign: Foreign,
        photo: &SendablePhoto,
        params: &CaptionParams,
        key: Option<ForeignKey>,
        total: Duration,
    ) -> RoutedCaption {
        let Foreign { texts, model, finish_reason, tokens, took } = foreign;
        let choice = |text| Choice {
            text,
            confidence: Choice::UNKNOWN,
            tokens,
            finish_reason,
            matching: None,
            sequence: TokenSequence::default(),
        };
        let answer = Arc::new(Answer {
            choices: texts.into_iter().map(choice).collect(),
            image: photo.image.clone(),
            colors: photo.colors.clone(),
            model: Some(model),
        });
        if let Some(ForeignKey(key)) = key {
            if params.cache == CachePolicy::Use {
                self.inner.metrics.lookup(CacheName::Answers, Lookup::Miss);
            }
            self.inner.answers.put(key, Arc::clone(&answer));
        }
        let timings = Timings {
            decode_ms: milliseconds(photo.took),
            queue_ms: 0.0,
            inference_ms: milliseconds(took),
            total_ms: milliseconds(total),
        };
        let mut made = self.foreign(&answer, params, CacheState::Miss, timings);
        let preview = photo.preview.clone();
        let appearance =
            preview.map(|preview| Appearance { preview: Some(preview), features: None });
        made.caption.appearance = appearance.map(Arc::new);
        made
    }

    /// How captions of a model elsewhere are asked for; `None` if they are not kept.
    #[must_use]
    pub fn kept_elsewhere(
        &self,
        asked: &str,
        params: &CaptionParams,
    ) -> Option<Arc<KeptParameters>> {
        self.inner.keeper.get()?;
        let recipe = params.recipe.as_deref();
        Some(Arc::new(self.kept(super::keys::fingerprint_elsewhere(asked, recipe), params)))
    }

    fn foreign(
        &self,
        answer: &Answer,
        params: &CaptionParams,
        cache: CacheState,
        timings: Timings,
    ) -> RoutedCaption {
        let style = params.text_style().of_foreign();
        let (colors, nothing) = (&answer.colors, self.fallback_text());
        let (captions, fallback) = styled(&answer.choices, style, colors, nothing);
        let recipe = params.recipe.as_deref();
        let (captions, fallback) =
            match chained(captions.clone(), fallback.clone(), recipe, colors, nothing) {
                Ok(made) => made,
                Err(error) => {
                    tracing::warn!(%error, "a text could not be made of a caption");
                    (captions, fallback)
                }
            };
        let caption = Caption {
            caption: captions.first().map(|best| best.text.clone()).unwrap_or_default(),
            captions,
            fallback,
            model: answer.model.clone().unwrap_or_default(),
            digest: String::new(),
            template: recipe.map(|recipe| recipe.name.clone()),
            experiment: recipe.and_then(|recipe| Some(recipe.experiment.as_ref()?.1.clone())),
            cache,
            vision_cache: None,
            image: answer.image.clone(),
            colors: params.colors.then(|| answer.colors.clone()),
            timings,
            routing: None,
            batch_size: None,
            appearance: None,
        };
        RoutedCaption { caption, colors: answer.colors.clone(), kept: None }
    }
}
