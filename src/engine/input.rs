//! The input of an engine: pixels, or the output of its vision tower.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use cutline_image::PixelValues;

/// The output of an engine's vision tower for one image. Only the engine that made it can use its
/// content; others can store it, count its bytes, and pass it back for another caption of the
/// image.
///
/// It never changes, so any number of jobs may share one.
pub struct EncodedImage {
    content: Box<dyn Any + Send + Sync>,
    bytes: usize,
    features: Option<Vec<f32>>,
}

impl EncodedImage {
    /// For engines: wraps their own `content`, which takes `bytes` of memory.
    #[must_use]
    pub fn new(content: impl Any + Send + Sync, bytes: usize) -> Self {
        Self { content: Box::new(content), bytes, features: None }
    }

    /// The same image with its [`features`](Self::features).
    #[must_use]
    pub fn with_features(self, features: Vec<f32>) -> Self {
        Self { features: Some(features), ..self }
    }

    /// What the vision tower says about the image as a whole, to compare images of one model; `None` if
    /// the engine was not asked for it.
    #[must_use]
    pub fn features(&self) -> Option<&[f32]> {
        self.features.as_deref()
    }

    /// Size in bytes, in the memory of the device.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// For the engine that made it: the content, if it has this type.
    #[must_use]
    pub fn content<T: Any>(&self) -> Option<&T> {
        self.content.downcast_ref()
    }
}

impl fmt::Debug for EncodedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedImage").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// The image of a job.
#[derive(Debug, Clone)]
pub enum ImageInput {
    /// There is none: the job is about texts alone.
    Nothing,
    /// Not encoded yet.
    Pixels(Arc<PixelValues>),
    /// Encoded by this engine before; the vision tower is skipped.
    Encoded(Arc<EncodedImage>),
}

impl From<PixelValues> for ImageInput {
    fn from(pixels: PixelValues) -> Self {
        Self::Pixels(Arc::new(pixels))
    }
}

impl From<Arc<PixelValues>> for ImageInput {
    fn from(pixels: Arc<PixelValues>) -> Self {
        Self::Pixels(pixels)
    }
}

impl From<Arc<EncodedImage>> for ImageInput {
    fn from(image: Arc<EncodedImage>) -> Self {
        Self::Encoded(image)
    }
}
