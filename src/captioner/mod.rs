//! The use case: an image and parameters in, a caption out.
//!
//! There is one way to make a caption, and it is [`Captioner::start`]: HTTP, the command line and
//! the benches all come through here, and a whole answer is the fold of the stream of events.

mod caption;
mod info;
mod load;
mod params;
mod run;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

pub use self::caption::{CacheState, Caption, Choice, ImageInfo, Timings};
pub use self::info::{GenerationDefaults, ModelInfo};
pub use self::load::CaptionerSettings;
pub use self::params::{CachePolicy, CaptionParams};
pub use self::run::{CaptionEvent, Run};
pub use crate::batching::Status;
use crate::batching::{Handle, Options, Priority, VisionOrder, Work};
use crate::engine::{Engine, PixelValues};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{DecodeLimits, PreprocessConfig, decode};
use crate::text::Tokenizer;

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
    limits: DecodeLimits,
    /// One permit for each image that may be decoded at a time.
    decoders: Arc<Semaphore>,
    info: ModelInfo,
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
    /// Images that may wait.
    pub queue_capacity: usize,
}

/// An image, ready for the model.
struct Prepared {
    pixels: Arc<PixelValues>,
    image: ImageInfo,
}

impl Captioner {
    /// Puts `engine` to work.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal): the system has no thread to give.
    pub fn with_engine(engine: Box<dyn Engine>, parts: Parts) -> Result<Self> {
        let options = Options {
            max_batch_size: parts.max_batch_size,
            queue_capacity: parts.queue_capacity,
            vision_order: VisionOrder::default(),
        };
        let handle = Handle::spawn(engine, options)?;
        let inner = Inner {
            handle,
            tokenizer: parts.tokenizer,
            preprocess: parts.preprocess,
            limits: parts.limits,
            decoders: Arc::new(Semaphore::new(parts.max_workers.max(1))),
            info: parts.info,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The loaded model.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// How queue and model are doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner.handle.status()
    }

    /// Accepts no more work; what was accepted is finished.
    pub fn close(&self) {
        self.inner.handle.close();
    }

    /// Takes a place in the queue, hashes, decodes and resizes `image` beside the model, and puts it
    /// there. Dropping the result takes the work back.
    ///
    /// # Errors
    /// Whatever is wrong with the parameters or the image, or no place in the queue.
    pub async fn start(&self, image: Vec<u8>, params: CaptionParams) -> Result<Run> {
        let begin = Instant::now();
        params.validate()?;
        let prompt = self.prompt(&params)?;
        // Before any work on the image: what cannot be queued need not be decoded.
        let place = self.inner.handle.reserve(1, Priority::Interactive)?.pop();
        let place = place.ok_or_else(|| Error::internal("no place was reserved"))?;
        let prepared = self.prepare(image).await?;
        let decode = begin.elapsed();
        let submission = place.submit(Work {
            image: prepared.pixels.into(),
            prompt: prompt.clone(),
            params: params.generation,
            deadline: None,
        })?;
        Ok(Run::new(self.clone(), submission, prepared.image, prompt, begin, decode))
    }

    /// Captions `image`: [`start`](Self::start), and wait for the end.
    ///
    /// # Errors
    /// Those of [`start`](Self::start), or the model failed.
    pub async fn caption(&self, image: Vec<u8>, params: CaptionParams) -> Result<Caption> {
        let mut run = self.start(image, params).await?;
        loop {
            match run.next().await? {
                CaptionEvent::Text(_) => {}
                CaptionEvent::Done(caption) => return Ok(*caption),
            }
        }
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.tokenizer.decode(ids)
    }

    /// The prompt's ids, checked with the length asked for against the model's position table.
    fn prompt(&self, params: &CaptionParams) -> Result<Vec<u32>> {
        let limit = self.inner.info.generation.max_new_tokens_limit;
        if params.generation.max_new_tokens > limit {
            return Err(Error::parameter(
                "max_new_tokens",
                format!("max_new_tokens must be between 1 and {limit} for this model"),
            ));
        }
        let Some(text) = &params.prompt else { return Ok(Vec::new()) };
        // No word piece is shorter than a byte, so this bounds the work on absurd prompts.
        let positions = self.inner.info.max_positions;
        let ids = if text.len() > positions.saturating_mul(64) {
            None
        } else {
            Some(self.inner.tokenizer.encode(text)?).filter(|ids| ids.len() + 1 < positions)
        };
        ids.ok_or_else(|| {
            Error::parameter(
                "prompt",
                format!(
                    "the prompt must be shorter than {positions} word pieces, which this model \
                     reads with the answer; shorten it"
                ),
            )
        })
    }

    async fn prepare(&self, bytes: Vec<u8>) -> Result<Prepared> {
        let permit = Arc::clone(&self.inner.decoders)
            .acquire_owned()
            .await
            .map_err(|e| Error::internal("image workers are closed").with_source(e))?;
        let inner = Arc::clone(&self.inner);
        let work = tokio::task::spawn_blocking(move || {
            // Held by the work, not by the caller: a caller that leaves does not free the core.
            let _permit = permit;
            inner.prepare(&bytes)
        });
        match work.await {
            Ok(result) => result,
            Err(join) if join.is_panic() => Err(Error::new(
                ErrorKind::UndecodableImage,
                "the image is damaged in a way that its decoder cannot handle; send it re-encoded",
            )
            .with_source(join)),
            Err(join) => Err(Error::internal("the image was not decoded").with_source(join)),
        }
    }
}

impl Inner {
    fn prepare(&self, bytes: &[u8]) -> Result<Prepared> {
        let decoded = decode(bytes, &self.limits)?;
        let pixels = self.preprocess.preprocess(&decoded)?;
        let image = ImageInfo {
            hash: format!("blake3:{}", blake3::hash(bytes).to_hex()),
            format: decoded.format.to_string(),
            width: decoded.width,
            height: decoded.height,
            size_bytes: bytes.len(),
        };
        Ok(Prepared { pixels: Arc::new(pixels), image })
    }
}
