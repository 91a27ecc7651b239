//! The interface between the model and the rest of the crate: a small synchronous trait over plain
//! data. No tensor and no async type crosses this boundary.

pub mod batch_size;
pub mod bench;
mod compare;
mod device;
#[cfg(test)]
pub(crate) mod fake;
pub mod hub;
mod input;
mod layout;
mod load;
pub mod local;
mod memory;
mod options;
pub mod quantize;
pub mod source;
mod work;

use std::sync::Arc;

pub use self::device::GpuInfo;
pub use self::hub::HubOptions;
pub use self::input::{EncodedImage, ImageInput};
pub use self::load::{EngineOptions, load, load_gpu_model_on_cpu, load_model};
pub use self::local::Timings;
pub use self::options::{DeviceChoice, KernelChoice, Precision};
pub use self::work::{Compared, ComparedText, Comparison, Work};
pub use cutline_blip::{Ability, Family, GpuKernels};
use cutline_error::{Error, Result};
pub use cutline_generate::fresh_seed;
pub use cutline_generate::params::{
    Alternatives, EarlyStopping, FinishReason, GenerationParams, MAX_ALTERNATIVES, MAX_BEAMS,
    Sequence, Task,
};
pub use cutline_generate::{ClosedSet, Entry};
pub use cutline_image::PixelValues;

/// Identifies a job in the engine. The caller chooses it; it is unique while the job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// One image, and what is to be done with it.
#[derive(Debug, Clone)]
pub struct Job {
    /// Identifies the job in the events.
    pub id: JobId,
    /// The image; pixels are encoded when the job starts.
    pub image: ImageInput,
    /// Token ids to continue, without the first (decoder-start) token; empty for none.
    pub prompt: Vec<u32>,
    /// What to do.
    pub task: Work,
    /// Tokens of the first sequence that were already sent to the caller, if the job is started
    /// again after a failure; otherwise empty. The first sequence begins with them. Otherwise the
    /// caller could get a mixture of two captions, because the other jobs in the batch may change
    /// how numbers are rounded, and thereby a token.
    pub written: Vec<u32>,
}

impl Job {
    /// A job that has not been started before.
    #[must_use]
    pub fn new(
        id: JobId,
        image: impl Into<ImageInput>,
        prompt: Vec<u32>,
        task: impl Into<Work>,
    ) -> Self {
        Self { id, image: image.into(), prompt, task: task.into(), written: Vec::new() }
    }
}

/// An event of a step.
#[derive(Debug, Clone)]
pub enum Event {
    /// The first sequence grew by a token. Beam search reports only the end.
    Token {
        /// The job.
        job: JobId,
        /// The newest token of the first sequence.
        token: u32,
    },
    /// The job is finished and not in the engine any more.
    Done {
        /// The job.
        job: JobId,
        /// Best first: `num_return_sequences` texts, or the ranked ones.
        sequences: Vec<Sequence>,
    },
    /// A [`Work::Compare`] is finished and not in the engine any more.
    Compared {
        /// The job.
        job: JobId,
        /// What was found out.
        compared: Compared,
    },
    /// The job failed and is not in the engine any more; the others go on.
    Failed {
        /// The job.
        job: JobId,
        /// The reason.
        error: Error,
    },
}

/// What is known about the loaded model.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineInfo {
    /// Which model it is, and thereby what it can do.
    pub family: Family,
    /// Numbers of an embedding, for a model that embeds images and texts.
    pub embedding_size: Option<usize>,
    /// Parameters, embeddings included, tied ones once.
    pub parameters: u64,
    /// `f32`, `bf16`, `int8`, …
    pub precision: String,
    /// On a CPU what multiplies matrices, `candle` or the name of an instruction set; on a GPU
    /// `cutline`, `candle`, or `cutline without` the operations that candle computes.
    pub kernels: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The GPU, if the device is one.
    pub gpu: Option<GpuInfo>,
    /// Side in pixels of the square images that the model was trained on.
    pub image_size: usize,
    /// Side of a patch in pixels; the sides of an image must be multiples of it.
    pub patch_size: usize,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Rows of the decoder's position table: the longest sequence, with first token and prompt.
    pub max_positions: usize,
    /// Threads that the arithmetic uses.
    pub threads: usize,
    /// How many images of the model's own size the vision tower encodes faster together than one
    /// after another; 1 where batches gain nothing.
    pub vision_batch: usize,
}

impl EngineInfo {
    /// Whether the arithmetic runs on a CPU.
    #[must_use]
    pub fn on_cpu(&self) -> bool {
        self.device == "cpu"
    }
}

/// A model with the jobs that it is working on.
///
/// The owner calls [`start`](Engine::start) for new work at any time and [`step`](Engine::step)
/// while there are jobs. Every call blocks until the arithmetic is done. On the CPU kernels a job's
/// result does not depend on the other jobs in the batch, and is the same, token by token, each
/// time the job is started; a job that samples repeats if its seed is given. With candle, on a GPU
/// or a CPU, the other jobs in the batch may change how numbers are rounded.
///
/// An error of kind [`OutOfMemory`](cutline_error::ErrorKind::OutOfMemory) says that the device's
/// memory is full: the same work may succeed with fewer jobs in the batch.
pub trait Engine: Send {
    /// Runs the vision tower over images of any sizes. Returns all of them in their order, or none.
    /// The jobs in the batch are not touched.
    ///
    /// # Errors
    /// One of the images does not fit this model, or the arithmetic failed. The error does not say
    /// which image is at fault; encode them one by one to find out.
    fn encode(&mut self, images: &[Arc<PixelValues>]) -> Result<Vec<EncodedImage>>;

    /// Encodes the image if necessary, reads the prompt and adds the job to the batch.
    ///
    /// # Errors
    /// The job cannot be started, and is forgotten; the others are not touched.
    fn start(&mut self, job: Job) -> Result<()>;

    /// Every job in the batch writes one token, or compares some texts; the events are appended to `events`.
    ///
    /// # Errors
    /// The whole step failed; all jobs in the batch are lost, and [`reset`](Engine::reset) must be
    /// called.
    fn step(&mut self, events: &mut Vec<Event>) -> Result<()>;

    /// Drops a job before it has finished; unknown ids are ignored.
    fn cancel(&mut self, job: JobId);

    /// Drops all jobs and everything that a failure or a panic may have left half done. The loaded
    /// weights stay, and images that were encoded before remain valid.
    fn reset(&mut self);
}
