//! What the rest of the crate knows of the model: a small synchronous trait over plain data.
//! No tensor and no async type crosses this line.

mod backend;
pub mod batch_size;
pub mod bench;
mod device;
#[cfg(test)]
pub(crate) mod fake;
pub mod hub;
mod input;
mod layout;
mod load;
pub mod local;
mod on_device;
mod options;
pub mod quantize;
pub mod source;
mod timings;

use std::sync::Arc;

pub use self::backend::{Backend, Encoded, Item, Read, Scores};
pub use self::device::GpuInfo;
pub use self::hub::HubOptions;
pub use self::input::{EncodedImage, ImageInput};
pub use self::load::{EngineOptions, load};
pub use self::options::{DeviceChoice, KernelChoice, Precision};
pub use self::timings::Timings;
use cutline_error::{Error, Result};
pub use cutline_generate::fresh_seed;
pub use cutline_generate::params::{
    EarlyStopping, FinishReason, GenerationParams, MAX_BEAMS, Sequence,
};
pub use cutline_image::PixelValues;

/// Names one image's work inside the engine; chosen by the caller, unique while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// One image to caption.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name in the events.
    pub id: JobId,
    /// The image; pixels are encoded when the job starts.
    pub image: ImageInput,
    /// Token ids to continue, without the first (decoder-start) token; empty for none.
    pub prompt: Vec<u32>,
    /// How to decode.
    pub params: GenerationParams,
}

/// What a step of the engine reports.
#[derive(Debug, Clone)]
pub enum Event {
    /// The best sequence so far grew (greedy and sampling; beam search reports only the end).
    Token {
        /// Whose.
        job: JobId,
        /// The newest token of the first sequence.
        token: u32,
    },
    /// The work is finished; the job is forgotten by the engine.
    Done {
        /// Whose.
        job: JobId,
        /// Best first, `num_return_sequences` of them.
        sequences: Vec<Sequence>,
    },
    /// This job failed; the others go on. The job is forgotten by the engine.
    Failed {
        /// Whose.
        job: JobId,
        /// Why.
        error: Error,
    },
}

/// What is known of the loaded model.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineInfo {
    /// Parameters, embeddings included, tied ones once.
    pub parameters: u64,
    /// `f32`, …
    pub precision: String,
    /// What multiplies: `candle`, …
    pub kernels: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The GPU that this is, where it is one.
    pub gpu: Option<GpuInfo>,
    /// Pixels of the square image that the model was trained on.
    pub image_size: usize,
    /// Side of a patch; an image's sides must be multiples of it.
    pub patch_size: usize,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Rows of the decoder's position table: prompt, first token and answer together.
    pub max_positions: usize,
    /// Threads that the arithmetic uses.
    pub threads: usize,
}

impl EngineInfo {
    /// Whether a CPU does the arithmetic.
    #[must_use]
    pub fn on_cpu(&self) -> bool {
        self.device == "cpu"
    }
}

/// A captioning model with the state of the work it is doing.
///
/// The owner calls [`start`](Engine::start) for new work at any time and [`step`](Engine::step)
/// while there are jobs; every call blocks for as long as the arithmetic takes. On a CPU, what comes
/// of a job does not depend on the jobs beside it, and is the same, token by token, each time that
/// the job is started anew; a job that samples repeats if its seed is given. On a device company may
/// change how numbers are rounded.
///
/// An error of kind [`OutOfMemory`](cutline_error::ErrorKind::OutOfMemory) says that the device had
/// no room: the same work may succeed with fewer jobs beside it.
pub trait Engine: Send {
    /// Runs the vision tower. The jobs in the batch are not touched.
    ///
    /// # Errors
    /// The pixels are no image for this model, or the arithmetic failed.
    fn encode(&mut self, pixels: &PixelValues) -> Result<EncodedImage>;

    /// How many images at once the vision tower takes faster than one after another; 1 where company
    /// gains nothing.
    fn vision_batch(&self) -> usize {
        1
    }

    /// [`encode`](Self::encode) of several images, of whatever sizes: all of them or none, in their
    /// order. Whose fault a failure is, is not said: who wants to know encodes them one by one.
    ///
    /// # Errors
    /// One of them is no image for this model, or the arithmetic failed.
    fn encode_all(&mut self, images: &[Arc<PixelValues>]) -> Result<Vec<EncodedImage>> {
        images.iter().map(|pixels| self.encode(pixels)).collect()
    }

    /// Encodes the image if need be, reads the prompt and makes the job part of the batch.
    ///
    /// # Errors
    /// The job cannot be started, and is forgotten; the others are not touched.
    fn start(&mut self, job: Job) -> Result<()>;

    /// [`start`](Self::start) of a job that was started before, and whose caller has heard these
    /// tokens of its first sequence: it begins with them. Where company may change how numbers are
    /// rounded, and with it a token, a caller would else hear a mixture of two captions.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    fn resume(&mut self, job: Job, _written: &[u32]) -> Result<()> {
        self.start(job)
    }

    /// Every job in the batch writes one token; what happened is appended to `events`.
    ///
    /// # Errors
    /// The whole step failed; all jobs in the batch are lost, and [`reset`](Engine::reset) is due.
    fn step(&mut self, events: &mut Vec<Event>) -> Result<()>;

    /// Drops a job before it has finished; unknown names are ignored.
    fn cancel(&mut self, job: JobId);

    /// Drops all jobs and whatever a failure, or a panic, may have left half done; only the loaded
    /// weights stay. Images that were encoded before are as good as they were.
    fn reset(&mut self);
}
