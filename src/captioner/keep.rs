//! Where captions are handed to, to be kept.

use std::fmt;
use std::sync::Arc;

use super::{CaptionParams, Captioner, Choice, ImageInfo, ModelInfo, Style};
use cutline_image::Colors;

/// Receives every caption that a caller gets. It must not wait.
pub trait Keep: Send + Sync + fmt::Debug {
    /// Takes over a caption.
    fn keep(&self, kept: Kept<'_>);
}

/// A caption, with everything that is kept of it.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// The model.
    pub model: &'a ModelInfo,
    /// How the caption was asked for.
    pub parameters: &'a KeptParameters,
    /// The photo.
    pub image: &'a ImageInfo,
    /// Its colours and mood.
    pub colors: &'a Colors,
    /// The best text; `None` if there is only the fallback.
    pub best: Option<&'a Choice>,
}

/// How a caption was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptParameters {
    /// [`Captioner::fingerprint`].
    pub fingerprint: String,
    /// The prompt; empty for none.
    pub prompt: String,
    /// Caption or alternative text.
    pub style: Style,
}

impl Captioner {
    /// Hands every caption to `keeper` from now on. Only the first call has an effect.
    pub fn keep_with(&self, keeper: Arc<dyn Keep>) {
        let _ = self.inner.keeper.set(keeper);
    }

    /// How captions with these parameters are asked for; `None` if they are not kept.
    pub(super) fn kept_parameters(&self, params: &CaptionParams) -> Option<Arc<KeptParameters>> {
        self.inner.keeper.get()?;
        Some(Arc::new(KeptParameters {
            fingerprint: self.fingerprint(params),
            prompt: params.prompt.clone().unwrap_or_default(),
            style: params.style,
        }))
    }

    /// Hands a caption over, if captions are kept.
    pub(super) fn keep(
        &self,
        parameters: Option<&KeptParameters>,
        image: &ImageInfo,
        colors: &Colors,
        best: Option<&Choice>,
    ) {
        if let (Some(keeper), Some(parameters)) = (self.inner.keeper.get(), parameters) {
            keeper.keep(Kept { model: self.info(), parameters, image, colors, best });
        }
    }
}
