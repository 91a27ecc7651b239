//! The data that caches keep, and that the callers of one caption share.

use std::sync::Arc;
use std::time::Duration;

use super::{Appearance, Choice, ImageInfo, Preview, TokenSequence, VisionCacheState};
use crate::cache::Weigh;
use crate::engine::{Alternatives, EncodedImage};
use cutline_error::Result;
use cutline_image::{Colors, DominantColor};

/// The part of an answer that is the same for all callers with the same request. It holds the
/// model's raw text; styles are applied later.
#[derive(Debug)]
pub(super) struct Answer {
    /// Best first, at least one.
    pub(super) choices: Vec<Choice>,
    pub(super) image: ImageInfo,
    pub(super) colors: Colors,
    /// The name of the model, if it is elsewhere.
    pub(super) model: Option<String>,
}

impl Weigh for Arc<Answer> {
    fn bytes(&self) -> usize {
        let heap = |choice: &Choice| {
            let TokenSequence { ids, log_probabilities, alternatives } = &choice.sequence;
            let slots = alternatives.capacity() * size_of::<Alternatives>();
            let each = |one: &Alternatives| size_of_val::<[_]>(one) + 2 * size_of::<usize>();
            choice.text.capacity()
                + 4 * (ids.capacity() + log_probabilities.capacity())
                + slots
                + alternatives.iter().map(each).sum::<usize>()
        };
        let texts: usize = self.choices.iter().map(heap).sum();
        let choices = self.choices.capacity() * size_of::<Choice>();
        let reference_counts = 2 * size_of::<usize>();
        size_of::<Self>()
            + reference_counts
            + size_of::<Answer>()
            + choices
            + texts
            + self.model.as_ref().map_or(0, String::capacity)
            + self.image.heap_bytes()
            + heap_bytes(&self.colors)
    }
}

/// A cached output of the vision tower, with what decoding told about the image.
#[derive(Debug, Clone)]
pub(super) struct EncodedImageEntry {
    pub(super) encoded: Arc<EncodedImage>,
    pub(super) image: ImageInfo,
    pub(super) colors: Colors,
    pub(super) preview: Option<Arc<Preview>>,
}

impl Weigh for EncodedImageEntry {
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + size_of::<EncodedImage>()
            + self.encoded.bytes()
            + self.encoded.features().map_or(0, size_of_val)
            + self.image.heap_bytes()
            + heap_bytes(&self.colors)
            + self.preview.as_ref().map_or(0, |preview| preview.heap_bytes())
    }
}

impl Preview {
    fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.thumbnail.as_ref().map_or(0, Vec::capacity)
    }
}

impl ImageInfo {
    fn heap_bytes(&self) -> usize {
        self.hash.capacity() + self.format.capacity()
    }
}

fn heap_bytes(colors: &Colors) -> usize {
    let names = colors.colors.iter().map(|color| color.hex.capacity() + color.name.capacity());
    names.sum::<usize>() + colors.colors.capacity() * size_of::<DominantColor>()
}

/// The progress of a caption that several callers may wait for.
#[derive(Debug, Default)]
pub(super) struct CaptionProgress {
    /// The image is decoded and the job is in the queue: from now on only the model can fail.
    pub(super) accepted: bool,
    /// The model has begun with it.
    pub(super) started: bool,
    /// The prompt and the tokens written so far. Beam search adds none before the end.
    pub(super) ids: Vec<u32>,
    pub(super) end: Option<Result<Arc<ComputedAnswer>>>,
}

impl CaptionProgress {
    pub(super) fn has_started(&self) -> bool {
        self.started || self.end.is_some()
    }
}

/// A computed answer, and where its time went.
#[derive(Debug)]
pub(super) struct ComputedAnswer {
    pub(super) answer: Arc<Answer>,
    pub(super) appearance: Option<Arc<Appearance>>,
    pub(super) vision: Option<VisionCacheState>,
    /// Whether it comes from the cache that several servers share, and was not computed.
    pub(super) shared: bool,
    pub(super) decode: Duration,
    pub(super) queued: Duration,
    pub(super) inference: Duration,
    /// The largest number of images in one of its decode steps, itself included.
    pub(super) batch_size: usize,
}
