//! The use case: an image and parameters in, a caption out.
//!
//! There is one way to make a caption, and it is [`Captioner::start_all`]: HTTP, the command line
//! and the benches all come through here, and a whole answer is the fold of the stream of events.
//!
//! - `start`: what is asked for, and whether it is known, under way, or new;
//! - `work`: computing what is new, for everybody who waits for it;
//! - `run`: what one caller sees of it;
//! - `style`: the caption as it is, or as alternative text; `fingerprint`: of what was asked;
//! - `answer`: what they share; `budget`: bytes of images in memory;
//! - `decoders`: the threads that read images; `process`: what they tell of one without the model.

mod answer;
mod budget;
mod caption;
mod decoders;
mod fingerprint;
mod info;
mod load;
mod params;
mod process;
mod run;
mod start;
mod style;
mod work;

use std::sync::Arc;
use std::time::Duration;

use self::answer::{Answer, Progress, Seen};
pub use self::budget::{Budget, Permit, Photo};
pub use self::caption::{CacheState, Caption, Choice, ImageInfo, Timings, VisionCacheState};
pub use self::decoders::Decoders;
pub use self::info::{GenerationDefaults, Gpu, ModelInfo};
pub use self::load::{CaptionerSettings, WORKERS_ON_CPU};
pub use self::params::{CachePolicy, CaptionParams, Parameter, ParameterFields};
pub(crate) use self::params::{given_twice, shortened, too_long};
pub use self::process::{ProcessTimings, ProcessedImage, ProcessedInfo};
pub use self::run::{CaptionEvent, Run};
pub use self::style::{Fallback, Style, TextStyle, repeats_itself};
use crate::cache::{Identity, SingleFlight, Store};
use crate::engine::Engine;
use crate::metrics::{CacheNow, Metrics, ModelNow};
use crate::scheduler::{Handle, Options, VisionOrder};
pub use crate::scheduler::{Priority, Status};
use crate::text::Tokenizer;
use cutline_error::Result;
use cutline_image::{DecodeLimits, PREPROCESSING_VERSION, PreprocessConfig};

/// Makes captions. Cheap to clone; the model is closed when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Captioner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    handle: Handle,
    tokenizer: Tokenizer,
    preprocess: PreprocessConfig,
    decoders: Decoders,
    info: ModelInfo,
    /// What is the same for all captions of this captioner.
    identity: Identity,
    answers: Store<Arc<Answer>>,
    /// Images that were encoded before.
    seen: Store<Seen>,
    flights: SingleFlight<Progress>,
    metrics: Metrics,
    memory: MemoryLimits,
    /// The text where there is no description.
    fallback: String,
}

/// The parts of a [`Captioner`] beside the engine.
#[derive(Debug)]
pub struct Parts {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// What the model's input looks like.
    pub preprocess: PreprocessConfig,
    /// What images are refused.
    pub limits: DecodeLimits,
    /// What is said of the model.
    pub info: ModelInfo,
    /// Images that are decoded at a time.
    pub max_workers: usize,
    /// Rows that are decoded together.
    pub max_batch_size: usize,
    /// When images are encoded while others are decoded.
    pub vision_order: VisionOrder,
    /// Images that may wait.
    pub queue_capacity: usize,
    /// What may be kept in memory.
    pub memory: MemoryLimits,
    /// The text of alternative text that describes nothing.
    pub fallback_text: String,
}

/// How much is kept in memory, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Bytes of answers that are remembered; 0 for none.
    pub cache_max_bytes: u64,
    /// How long an answer or an encoded image is remembered.
    pub cache_ttl: Duration,
    /// Bytes of encoded images that are remembered; 0 for none.
    pub vision_cache_bytes: u64,
    /// Bytes of images that are being received or wait.
    pub max_inflight_bytes: u64,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            cache_max_bytes: 64 << 20,
            cache_ttl: Duration::from_secs(3600),
            vision_cache_bytes: 128 << 20,
            max_inflight_bytes: 256 << 20,
        }
    }
}

impl Captioner {
    /// Puts `engine` to work.
    ///
    /// # Errors
    /// [`Internal`](cutline_error::ErrorKind::Internal): the system has no thread to give.
    pub fn with_engine(engine: Box<dyn Engine>, parts: Parts) -> Result<Self> {
        Self::measured(engine, parts, Metrics::new())
    }

    /// [`with_engine`](Self::with_engine), with what happens counted in `metrics`.
    ///
    /// # Errors
    /// As [`with_engine`](Self::with_engine).
    pub fn measured(engine: Box<dyn Engine>, parts: Parts, metrics: Metrics) -> Result<Self> {
        let options = Options {
            max_batch_size: parts.max_batch_size,
            queue_capacity: parts.queue_capacity,
            vision_order: parts.vision_order,
        };
        let handle = Handle::spawn_measured(engine, options, metrics.clone())?;
        let identity = identity(&parts.info, &parts.preprocess);
        let memory = parts.memory;
        let inner = Inner {
            handle,
            tokenizer: parts.tokenizer,
            preprocess: parts.preprocess,
            decoders: Decoders::new(
                parts.limits,
                parts.max_workers,
                Budget::new(memory.max_inflight_bytes),
            ),
            info: parts.info,
            identity,
            answers: Store::new(memory.cache_max_bytes, memory.cache_ttl),
            seen: Store::new(memory.vision_cache_bytes, memory.cache_ttl),
            flights: SingleFlight::default(),
            metrics,
            memory,
            fallback: parts.fallback_text,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The loaded model.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// Where images are decoded, for work on them that needs no model.
    #[must_use]
    pub fn decoders(&self) -> &Decoders {
        &self.inner.decoders
    }

    /// The text that stands where alternative text would describe nothing.
    #[must_use]
    pub fn fallback_text(&self) -> &str {
        &self.inner.fallback
    }

    /// How queue and model are doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner.handle.status()
    }

    /// What Prometheus is told of model, queue and caches at this moment.
    #[must_use]
    pub fn now(&self) -> ModelNow {
        let Inner { info, answers, seen, memory, .. } = &*self.inner;
        let status = self.status();
        let limit = status.memory_limit.unwrap_or(status.max_batch_size);
        ModelNow {
            id: info.id.clone(),
            device: info.device.clone(),
            precision: info.precision.clone(),
            kernels: info.kernels.clone(),
            parameters: info.parameters,
            queue_depth: status.queue_depth,
            queue_reserved: status.reserved,
            queue_capacity: status.queue_capacity,
            in_flight: status.in_flight,
            batch_rows_limit: limit,
            degraded: status.degraded,
            captioned: status.finished,
            encoded: status.encoded,
            failures: status.failures,
            out_of_memory: status.out_of_memory,
            answers: CacheNow { bytes: answers.bytes(), bytes_limit: memory.cache_max_bytes },
            images: CacheNow { bytes: seen.bytes(), bytes_limit: memory.vision_cache_bytes },
        }
    }

    /// Bytes of images that may be in memory.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        self.inner.decoders.budget()
    }

    /// Accepts no more work; what was accepted is finished.
    pub fn close(&self) {
        self.inner.handle.close();
    }

    /// Captions `photo` for somebody who waits for it.
    ///
    /// # Errors
    /// Those of [`start`](Self::start), or the image is bad, or the model failed.
    pub async fn caption(&self, photo: impl Into<Photo>, params: CaptionParams) -> Result<Caption> {
        self.start(photo, params).await?.end().await
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.tokenizer.decode(ids)
    }
}

/// The weights, how they are multiplied, and what they are shown.
fn identity(info: &ModelInfo, preprocess: &PreprocessConfig) -> Identity {
    Identity::new(&[
        &info.digest,
        &info.precision,
        // Kernels and devices round differently.
        &info.kernels,
        &info.device,
        &PREPROCESSING_VERSION.to_string(),
        // Size, resampling and the numbers of the normalisation.
        &format!("{preprocess:?}"),
    ])
}
