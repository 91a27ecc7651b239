//! The use case: photos and parameters in, captions out.
//!
//! There is one way to make a caption, [`Captioner::start_all`]. HTTP, the command line and the
//! benches all use it. A complete answer is the fold of the stream of events.
//!
//! - `admit`: look a request up in the cache, join it to work in flight, or queue it;
//! - `work`: compute a new answer for everyone who waits for it;
//! - `stream`: one caller's view of that work;
//! - `dispatch`: who else may answer: other models, and routes;
//! - `foreign`: answers of models elsewhere;
//! - `shared`: answers that several servers share, with the feature `redis`;
//! - `keep`: where captions are handed to, to be kept;
//! - `charge`: who pays for captions;
//! - `answer`: the data that callers and caches share; `keys`: cache keys and fingerprints;
//! - `style`: captions as the model writes them, or as alternative text; `tags`: words from captions;
//!   `tokens`: the texts of single tokens; `recipe`: captions by a version of a prompt;
//! - `rank`: how well given texts fit a photo; `tagging`: tags from an allowed list;
//! - `compare`: texts and photos with a model that compares them; `ask`: answers to questions;
//!   `text_params`: the parameters of both;
//! - `budget`: the bytes of images in memory; `memory`: the memory of decoded images, and of the whole
//!   server; `decoders`: the threads that decode images;
//! - `process`: image analysis without the model;
//! - `params`, `caption`, `info`: the parameters of a request, its answer, and the model's
//!   description; `extras`: what a model says in `cutline.json`; `defaults`: its own defaults of
//!   decoding; `load`: from settings to a captioner.

mod admit;
mod afterwards;
mod answer;
mod ask;
mod budget;
mod caption;
mod charge;
mod compare;
mod decoders;
mod defaults;
mod dispatch;
mod extras;
mod foreign;
mod info;
mod keep;
mod keys;
mod load;
mod memory;
mod param_schema;
mod params;
mod process;
mod rank;
mod recipe;
#[cfg(feature = "redis")]
mod shared;
mod stream;
mod style;
mod tagging;
mod tags;
mod text_params;
mod tokens;
mod work;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore};

pub use self::afterwards::PhotoEmbedding;
use self::answer::{Answer, CaptionProgress, EncodedImageEntry};
pub use self::ask::{Answered, QuestionAnswer};
pub use self::budget::{Budget, Permit, Photo};
pub(crate) use self::budget::{append, image_too_large, no_memory};
pub use self::caption::{
    CacheState, Caption, Choice, ImageInfo, Timings, TokenSequence, VisionCacheState,
};
use self::charge::Payer;
pub use self::charge::{Account, Settling, Spent, Work, charged_to, current_account};
pub use self::compare::{CompareTimings, Embedded, Scored, TextEmbedding, TextScore};
pub use self::decoders::Decoders;
pub use self::defaults::Given;
pub use self::dispatch::{Dispatch, RouteWriter, Routed, RoutedCaption, Routing};
pub use self::extras::{Calibration, DecodingDefaults, ModelExtras};
pub use self::foreign::{Foreign, ForeignKey, SENT_SIDE, SendablePhoto};
pub use self::info::{GenerationDefaults, Gpu, ModelInfo, OtherModel};
pub use self::keep::{Appearance, AppearanceOptions, Keep, Kept, KeptParameters, Preview};
use self::keys::CaptionKeys;
pub use self::load::{CaptionerSettings, WORKERS_ON_CPU};
pub use self::memory::{DecodeMemory, ImageMemory, MemoryBound, decode_bytes};
pub use self::param_schema::Parameter;
pub use self::params::{CachePolicy, CaptionParams, ParameterFields};
pub(crate) use self::params::{given_twice, shortened, too_long};
pub use self::process::{ProcessTimings, ProcessedImage, ProcessedInfo};
pub use self::rank::MAX_TEXTS;
use self::rank::Priors;
pub use self::recipe::{Recipe, RecipeVersion, facts};
pub use self::stream::{CaptionEvent, CaptionStream};
pub use self::style::{Fallback, Style, TextStyle, repeats_itself};
pub use self::tagging::{
    Coverage, Evidence, NearPhoto, NearTags, Support, TagChoice, TagFields, TagParams, TagRequest,
    TagStrategy, TagTimings, Tagged, Tagger, TagsByCategory,
};
pub use self::tags::{Tag, tag_params, tags};
pub use self::text_params::{
    QuestionParams, ScoreMode, TEXT_TOKENS, TextFields, TextParams, TextUse,
};
pub use self::tokens::TokenText;
use crate::cache::{SingleFlight, Store};
use crate::engine::{EncodedImage, Engine};
use crate::metrics::{CacheSnapshot, Metrics, ModelSnapshot};
use crate::scheduler::{Handle, SchedulerOptions, VisionOrder};
pub use crate::scheduler::{Priority, SchedulerStatus};
use crate::tokenizer::Tokenizer;
use cutline_error::Result;
use cutline_image::{DecodeLimits, PreprocessConfig};

/// Bytes of what the model expects of texts; the sets of a few hundred requests with many texts.
const PRIORS_BYTES: u64 = 1 << 20;

/// Makes captions. Cheap to clone; the model is closed when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Captioner {
    inner: Arc<CaptionerInner>,
    payer: Payer,
}

#[derive(Debug)]
struct CaptionerInner {
    scheduler: Handle,
    tokenizer: Tokenizer,
    preprocess: PreprocessConfig,
    decoders: Decoders,
    info: ModelInfo,
    extras: ModelExtras,
    keys: CaptionKeys,
    answers: Store<Arc<Answer>>,
    /// Outputs of the vision tower.
    encoded_images: Store<EncodedImageEntry>,
    flights: SingleFlight<CaptionProgress>,
    /// What the model expects of texts without a photo.
    priors: Store<Priors>,
    /// The images that this is found with, encoded.
    blank_images: OnceCell<Vec<Arc<EncodedImage>>>,
    metrics: Metrics,
    memory: MemoryLimits,
    /// The most memory of the process, without what the HTTP server adds; `None` where the system does
    /// not tell.
    memory_bound: Option<MemoryBound>,
    fallback_text: String,
    /// What is found out for those who keep captions.
    appearance: Option<AppearanceOptions>,
    /// Where captions are kept, if they are.
    keeper: OnceLock<Arc<dyn Keep>>,
    /// What embeds photos whose captions are kept, if anything does.
    embedder: OnceLock<Captioner>,
    /// Who else may answer, if there are others.
    dispatch: OnceLock<Arc<dyn Dispatch>>,
    /// Where answers are shared with other servers, if they are.
    #[cfg(feature = "redis")]
    shared: OnceLock<shared::SharedAnswers>,
}

/// The parts of a [`Captioner`] in addition to the engine.
#[derive(Debug)]
pub struct CaptionerParts {
    /// Converts between text and token ids.
    pub tokenizer: Tokenizer,
    /// Size and normalisation of the model's input.
    pub preprocess: PreprocessConfig,
    /// The largest images that are accepted.
    pub limits: DecodeLimits,
    /// The description of the model.
    pub info: ModelInfo,
    /// What the model says about itself.
    pub extras: ModelExtras,
    /// Images that are decoded at a time.
    pub max_workers: usize,
    /// Rows that are decoded together.
    pub max_batch_size: usize,
    /// When images are encoded while others are decoded.
    pub vision_order: VisionOrder,
    /// Images that the vision tower encodes faster together than one after another, at least 1; see
    /// [`EngineInfo`](crate::engine::EngineInfo).
    pub vision_batch: usize,
    /// Images that may wait.
    pub queue_capacity: usize,
    /// Limits of caches and image memory.
    pub memory: MemoryLimits,
    /// The alternative text of a photo for which the model finds no description.
    pub fallback_text: String,
    /// What is found out about how photos look; `None` for nothing. The engine must know as well.
    pub appearance: Option<AppearanceOptions>,
    /// Where stages, steps and failures are counted.
    pub metrics: Metrics,
}

/// How much is kept in memory, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Bytes of cached answers; 0 disables that cache.
    pub cache_max_bytes: u64,
    /// How long an answer or an encoded image is cached.
    pub cache_ttl: Duration,
    /// Bytes of cached encoded images; 0 disables that cache.
    pub vision_cache_bytes: u64,
    /// Bytes of images that are being received or wait.
    pub max_inflight_bytes: u64,
    /// Bytes that decoding may take.
    pub max_decode_bytes: u64,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            cache_max_bytes: 64 << 20,
            cache_ttl: Duration::from_secs(3600),
            vision_cache_bytes: 128 << 20,
            max_inflight_bytes: 256 << 20,
            max_decode_bytes: decode_bytes(DecodeLimits::default().max_pixels),
        }
    }
}

impl Captioner {
    /// Starts a thread for `engine` and returns a captioner that uses it.
    ///
    /// # Errors
    /// [`Internal`](cutline_error::ErrorKind::Internal): the system cannot start a thread.
    pub fn with_engine(engine: Box<dyn Engine>, parts: CaptionerParts) -> Result<Self> {
        let MemoryLimits { max_inflight_bytes, max_decode_bytes, .. } = parts.memory;
        let memory = ImageMemory::new(max_inflight_bytes, max_decode_bytes);
        let decoders = Decoders::with_memory(parts.limits, parts.max_workers, memory);
        Self::assemble(engine, parts, decoders, 0)
    }

    /// [`with_engine`](Self::with_engine) with decoders that may be shared, and with the memory that the
    /// largest batch takes in the engine.
    fn assemble(
        engine: Box<dyn Engine>,
        parts: CaptionerParts,
        decoders: Decoders,
        batch_bytes: u64,
    ) -> Result<Self> {
        let CaptionerParts { memory, metrics, .. } = parts;
        let options = SchedulerOptions {
            max_batch_size: parts.max_batch_size,
            queue_capacity: parts.queue_capacity,
            vision_order: parts.vision_order,
            vision_batch: parts.vision_batch,
            metrics: metrics.clone(),
        };
        let inner = CaptionerInner {
            scheduler: Handle::spawn(engine, options)?,
            tokenizer: parts.tokenizer,
            keys: CaptionKeys::new(&parts.info, &parts.preprocess),
            preprocess: parts.preprocess,
            decoders,
            info: parts.info,
            extras: parts.extras,
            answers: Store::new(memory.cache_max_bytes, memory.cache_ttl),
            // A photo that was just captioned is tagged next, or captioned with another prompt.
            encoded_images: Store::of_recent(memory.vision_cache_bytes, memory.cache_ttl),
            flights: SingleFlight::default(),
            priors: Store::new(PRIORS_BYTES, memory.cache_ttl),
            blank_images: OnceCell::new(),
            metrics,
            memory,
            memory_bound: MemoryBound::new(memory, batch_bytes),
            fallback_text: parts.fallback_text,
            appearance: parts.appearance,
            keeper: OnceLock::new(),
            embedder: OnceLock::new(),
            dispatch: OnceLock::new(),
            #[cfg(feature = "redis")]
            shared: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner), payer: Payer::default() })
    }

    /// Where its work is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The loaded model.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// How often `word`, in lower case, was in the captions that the model was trained with; `None` if the
    /// model has no such table.
    #[must_use]
    pub fn support(&self, word: &str) -> Option<u64> {
        let table = self.inner.extras.support.as_ref()?;
        Some(table.get(word).copied().unwrap_or(0))
    }

    /// The decoders, for image work that needs no model.
    #[must_use]
    pub fn decoders(&self) -> &Decoders {
        &self.inner.decoders
    }

    /// The alternative text of a photo for which the model finds no description.
    #[must_use]
    pub fn fallback_text(&self) -> &str {
        &self.inner.fallback_text
    }

    /// The number of photos in work at a time that keeps the model and the decoders busy, and that fits
    /// into the queue and into the memory for images.
    #[must_use]
    pub fn photos_at_once(&self) -> usize {
        let status = self.status();
        let [width, height] = self.info().input_size;
        // The input of the model: three 32-bit numbers per pixel.
        let input = (width * height * 12).max(1) as u64;
        let fitting = usize::try_from(self.budget().capacity() / input).unwrap_or(usize::MAX);
        let busy = status.max_batch_size.saturating_add(self.decoders().workers());
        busy.min(status.queue_capacity).min(fitting).clamp(1, Semaphore::MAX_PERMITS)
    }

    /// The present state of queue and model.
    #[must_use]
    pub fn status(&self) -> SchedulerStatus {
        self.inner.scheduler.status()
    }

    /// The present state of model, queue and caches, for Prometheus.
    #[must_use]
    pub fn snapshot(&self) -> ModelSnapshot {
        let CaptionerInner { info, answers, encoded_images, memory, .. } = &*self.inner;
        let status = self.status();
        let limit = status.memory_limit.unwrap_or(status.max_batch_size);
        ModelSnapshot {
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
            answers: CacheSnapshot { bytes: answers.bytes(), bytes_limit: memory.cache_max_bytes },
            images: CacheSnapshot {
                bytes: encoded_images.bytes(),
                bytes_limit: memory.vision_cache_bytes,
            },
        }
    }

    /// Removes the photo with this hash, as in [`ImageInfo::hash`], from the caches.
    pub fn forget(&self, hash: &str) {
        let CaptionerInner { answers, encoded_images, .. } = &*self.inner;
        answers.remove_if(|answer| answer.image.hash == hash);
        encoded_images.remove_if(|entry| entry.image.hash == hash);
    }

    /// Whether the model has stopped for good: only a restart of the program helps.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.inner.scheduler.has_failed()
    }

    /// Waits until the model has stopped for good. Pending for as long as it works.
    pub async fn failed(&self) {
        self.inner.scheduler.failed().await;
    }

    /// The memory that images may take.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        self.inner.decoders.budget()
    }

    /// The most memory that the process takes for loading and captioning; `None` where the system does
    /// not tell. After [`with_engine`](Self::with_engine), jobs in the engine are not counted.
    #[must_use]
    pub fn memory_bound(&self) -> Option<MemoryBound> {
        self.inner.memory_bound
    }

    /// Stops accepting work. Accepted work is still finished.
    pub fn close(&self) {
        self.inner.scheduler.close();
    }

    /// Captions one photo.
    ///
    /// # Errors
    /// Those of [`start`](Self::start); also if the image is bad or the model fails.
    pub async fn caption(&self, photo: impl Into<Photo>, params: CaptionParams) -> Result<Caption> {
        self.start(photo, params).await?.end().await
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.tokenizer.decode(ids)
    }
}
