//! What the caches keep of captions, and what the callers of one caption share.

use std::sync::Arc;
use std::time::Duration;

use super::{Choice, ImageInfo, VisionCacheState};
use crate::cache::Weigh;
use crate::engine::EncodedImage;
use cutline_error::Result;
use cutline_image::{Colors, DominantColor};

/// The part of an answer that is the same for everybody who asks the same.
#[derive(Debug)]
pub(super) struct Answer {
    /// Best first, one or more.
    pub(super) choices: Vec<Choice>,
    pub(super) image: ImageInfo,
    /// Its colours and mood.
    pub(super) colors: Colors,
}

impl Weigh for Arc<Answer> {
    fn bytes(&self) -> usize {
        let texts: usize = self.choices.iter().map(|choice| choice.text.capacity()).sum();
        let choices = self.choices.capacity() * size_of::<Choice>();
        // The counters of the Arc.
        let counters = 2 * size_of::<usize>();
        size_of::<Self>()
            + counters
            + size_of::<Answer>()
            + choices
            + texts
            + self.image.heap()
            + heap(&self.colors)
    }
}

/// What the vision tower made of an image, and what is known of the image from decoding it.
#[derive(Debug, Clone)]
pub(super) struct EncodedImageEntry {
    pub(super) encoded: Arc<EncodedImage>,
    pub(super) image: ImageInfo,
    /// Its colours and mood.
    pub(super) colors: Colors,
}

impl Weigh for EncodedImageEntry {
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + size_of::<EncodedImage>()
            + self.encoded.bytes()
            + self.image.heap()
            + heap(&self.colors)
    }
}

impl ImageInfo {
    fn heap(&self) -> usize {
        self.hash.capacity() + self.format.capacity()
    }
}

/// What an colors holds beside itself.
fn heap(colors: &Colors) -> usize {
    let names = colors.colors.iter().map(|color| color.hex.capacity() + color.name.capacity());
    names.sum::<usize>() + colors.colors.capacity() * size_of::<DominantColor>()
}

/// How far a caption is that several callers may wait for.
#[derive(Debug, Default)]
pub(super) struct CaptionProgress {
    /// The image is decoded and the work is in the queue: from here on only the model can fail.
    pub(super) accepted: bool,
    /// The prompt and what was written so far; nothing of beams.
    pub(super) ids: Vec<u32>,
    pub(super) end: Option<Result<Arc<ComputedAnswer>>>,
}

/// A caption that was computed, and where the time went.
#[derive(Debug)]
pub(super) struct ComputedAnswer {
    pub(super) answer: Arc<Answer>,
    pub(super) vision: Option<VisionCacheState>,
    pub(super) decode: Duration,
    pub(super) queued: Duration,
    pub(super) inference: Duration,
    /// The most images that shared a step with it, itself included.
    pub(super) batch_size: usize,
}
