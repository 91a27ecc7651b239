//! Hands captions to whoever keeps them, with what else is kept of a photo.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::afterwards::PhotoEmbedding;
use super::{Caption, CaptionParams, Captioner, CaptionerInner, Choice, ImageInfo, Recipe, Style};
use cutline_error::Result;
use cutline_image::{Colors, DecodedImage, PixelValues, Stretched};

/// What is found out about how a photo looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppearanceOptions {
    /// Whether thumbnails are made.
    pub thumbnails: bool,
}

/// How a photo looks: what a gallery shows of it, and what similar photos are found by.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Appearance {
    /// What is made of its pixels.
    pub preview: Option<Arc<Preview>>,
    /// The class token of the vision tower. Only those of one model can be compared.
    pub features: Option<Vec<f32>>,
}

/// A photo for people, and for finding copies of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// A small JPEG file.
    pub thumbnail: Option<Vec<u8>>,
    /// The 64-bit difference hash.
    pub difference_hash: u64,
}

/// Receives every caption that a caller gets. It must not wait.
pub trait Keep: Send + Sync + fmt::Debug {
    /// Takes over a caption.
    fn keep(&self, kept: Kept<'_>);
}

/// A caption, with everything that is kept of it.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// The name of the model.
    pub model: &'a str,
    /// The digest of its weights; empty if it is elsewhere.
    pub digest: &'a str,
    /// How the caption was asked for.
    pub parameters: &'a KeptParameters,
    /// The photo.
    pub image: &'a ImageInfo,
    /// Its colours and mood.
    pub colors: &'a Colors,
    /// How it looks; `None` if that is not known any more: it was handed over with an earlier caption.
    pub appearance: Option<&'a Appearance>,
    /// The best text; `None` if there is only the fallback.
    pub best: Option<&'a Choice>,
    /// The photo as another model sees it that compares texts and photos; `None` if none was asked.
    pub embedding: Option<&'a PhotoEmbedding>,
    /// How long the caller waited for it.
    pub latency: Duration,
    /// What it cost, if that is known.
    pub cost: Option<f64>,
}

/// How a caption was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptParameters {
    /// [`Captioner::fingerprint`].
    pub fingerprint: String,
    /// The prompt; empty for none.
    pub prompt: String,
    /// Caption or alternative text.
    pub style: Style,
    /// The version of a prompt that it was asked for with.
    pub recipe: Option<Arc<Recipe>>,
}

impl Captioner {
    /// Hands every caption to `keeper` from now on. Only the first call has an effect.
    pub fn keep_with(&self, keeper: Arc<dyn Keep>) {
        let _ = self.inner.keeper.set(keeper);
    }

    /// How captions with these parameters are asked for; `None` if they are not kept.
    pub(crate) fn kept_parameters(&self, params: &CaptionParams) -> Option<Arc<KeptParameters>> {
        self.inner.keeper.get()?;
        // An answer to a question is no caption.
        if params.question.is_some() {
            return None;
        }
        Some(Arc::new(self.kept(self.fingerprint(params), params)))
    }

    pub(super) fn kept(&self, fingerprint: String, params: &CaptionParams) -> KeptParameters {
        KeptParameters {
            fingerprint,
            prompt: params.prompt.clone().unwrap_or_default(),
            style: params.kept_style(),
            recipe: params.recipe.clone(),
        }
    }

    /// Hands a caption over, if captions are kept.
    pub(super) fn keep(
        &self,
        parameters: Option<&KeptParameters>,
        caption: &Caption,
        colors: &Colors,
        embedding: Option<&PhotoEmbedding>,
        latency: Duration,
    ) {
        let (Some(keeper), Some(parameters)) = (self.inner.keeper.get(), parameters) else {
            return;
        };
        keeper.keep(Kept {
            model: &caption.model,
            digest: &caption.digest,
            parameters,
            image: &caption.image,
            colors,
            appearance: caption.appearance.as_deref(),
            best: caption.captions.first().filter(|_| caption.fallback.is_none()),
            embedding,
            latency,
            cost: caption.routing.as_ref().and_then(|routing| routing.cost),
        });
    }
}

impl CaptionerInner {
    /// The model's input and, if it is wanted, a preview.
    pub(super) fn preprocess(
        &self,
        decoded: &DecodedImage,
    ) -> Result<(PixelValues, Option<Arc<Preview>>)> {
        let Some(options) = self.appearance else {
            return Ok((self.preprocess.preprocess(decoded)?, None));
        };
        // The model's input is small, and both are made of it.
        let stretched = Stretched::new(self.preprocess.resize(decoded)?, &self.preprocess, decoded);
        let pixels = self.preprocess.normalize(stretched.rgb());
        Ok((pixels, made(preview(&stretched, options))))
    }

    /// A preview, if it is wanted.
    pub(super) fn preview(&self, decoded: &DecodedImage) -> Result<Option<Arc<Preview>>> {
        let Some(options) = self.appearance else { return Ok(None) };
        let stretched = Stretched::new(self.preprocess.resize(decoded)?, &self.preprocess, decoded);
        Ok(made(preview(&stretched, options)))
    }
}

/// A caption is worth having without its preview.
fn made(preview: Result<Preview>) -> Option<Arc<Preview>> {
    let preview = preview.inspect_err(|error| tracing::warn!(%error, "a photo has no preview"));
    preview.ok().map(Arc::new)
}

fn preview(image: &Stretched, options: AppearanceOptions) -> Result<Preview> {
    let thumbnail = options.thumbnails.then(|| image.thumbnail()).transpose()?;
    Ok(Preview { thumbnail, difference_hash: image.difference_hash()? })
}
