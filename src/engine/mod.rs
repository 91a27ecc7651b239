//! What the rest of the crate knows of the model: a small synchronous trait over plain data.
//! No tensor and no async type crosses this line.

mod backend;
pub mod bench;
#[cfg(test)]
pub(crate) mod fake;
pub mod hub;
mod layout;
mod load;
pub mod local;
mod options;
pub mod quantize;
pub mod source;
mod timings;

use std::sync::Arc;

pub use self::backend::{Backend, Encoded, Item};
pub use self::hub::HubOptions;
pub use self::load::{EngineOptions, load};
pub use self::options::{DeviceChoice, KernelChoice, Precision};
pub use self::timings::Timings;
use crate::error::{Error, Result};
pub use crate::generate::params::{
    EarlyStopping, FinishReason, GenerationParams, MAX_BEAMS, Sequence,
};

/// Names one image's work inside the engine; chosen by the caller, unique while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// A preprocessed image: normalised RGB planes, channel-first, `3 × height × width`.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelValues {
    /// `3 · height · width` values, plane after plane, row after row.
    pub data: Vec<f32>,
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// One image to caption.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name in the events.
    pub id: JobId,
    /// The image.
    pub pixels: Arc<PixelValues>,
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

/// A captioning model with the state of the work it is doing.
///
/// The owner calls [`start`](Engine::start) for new work at any time and [`step`](Engine::step)
/// while [`active`](Engine::active) is not zero; every call blocks for as long as the arithmetic
/// takes. A job's result does not depend on the jobs beside it.
pub trait Engine: Send {
    /// The loaded model.
    fn info(&self) -> &EngineInfo;

    /// Encodes the image, reads the prompt and makes the job part of the batch.
    ///
    /// # Errors
    /// The job cannot be started, and is forgotten; the others are not touched.
    fn start(&mut self, job: Job) -> Result<()>;

    /// Every active job writes one token; what happened is appended to `events`.
    ///
    /// # Errors
    /// The whole step failed; all active jobs are lost.
    fn step(&mut self, events: &mut Vec<Event>) -> Result<()>;

    /// Drops a job before it has finished; unknown names are ignored.
    fn cancel(&mut self, job: JobId);

    /// How many jobs are in the batch.
    fn active(&self) -> usize;
}
