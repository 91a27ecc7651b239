//! The use case: an image and parameters in, a caption out.
//!
//! There is one way to make a caption, and it is [`Captioner::start`]: HTTP, the command line and
//! the benches all come through here, and a whole answer is the fold of the stream of events.

mod caption;
mod decoders;
mod info;
mod load;
mod params;
mod process;
mod run;

use std::sync::Arc;
use std::time::Instant;

pub use self::caption::{CacheState, Caption, Choice, ImageInfo, Timings};
pub use self::decoders::Decoders;
pub use self::info::{GenerationDefaults, ModelInfo};
pub use self::load::CaptionerSettings;
pub use self::params::{CachePolicy, CaptionParams};
pub use self::process::{ProcessTimings, ProcessedImage, ProcessedInfo};
pub use self::run::{CaptionEvent, Run};
use crate::batching::Handle;
pub use crate::batching::Status;
use crate::engine::{Engine, PixelValues};
use crate::error::{Error, Result};
use crate::image::{Appearance, DecodeLimits, PreprocessConfig, decode_for};
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
    decoders: Decoders,
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
    appearance: Option<Appearance>,
}

impl Captioner {
    /// Puts `engine` to work.
    ///
    /// # Errors
    /// [`Internal`](crate::error::ErrorKind::Internal): the system has no thread to give.
    pub fn with_engine(engine: Box<dyn Engine>, parts: Parts) -> Result<Self> {
        let handle = Handle::spawn(engine, parts.max_batch_size, parts.queue_capacity)?;
        let inner = Inner {
            handle,
            tokenizer: parts.tokenizer,
            preprocess: parts.preprocess,
            decoders: Decoders::new(parts.limits, parts.max_workers),
            info: parts.info,
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

    /// How queue and model are doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner.handle.status()
    }

    /// Accepts no more work; what was accepted is finished.
    pub fn close(&self) {
        self.inner.handle.close();
    }

    /// Hashes, decodes and resizes `image` beside the model, and queues it. Dropping the result
    /// takes the work back.
    ///
    /// # Errors
    /// Whatever is wrong with the parameters or the image, or no place in the queue.
    pub async fn start(&self, image: Vec<u8>, params: CaptionParams) -> Result<Run> {
        let begin = Instant::now();
        params.validate()?;
        let prompt = self.prompt(&params)?;
        let prepared = self.prepare(image, params.colors).await?;
        let decode = begin.elapsed();
        let generation = params.generation.clone();
        let Prepared { pixels, image, appearance } = prepared;
        let submission = self.inner.handle.submit(pixels, prompt.clone(), generation)?;
        Ok(Run::new(self.clone(), submission, image, appearance, prompt, begin, decode))
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

    async fn prepare(&self, bytes: Vec<u8>, colors: bool) -> Result<Prepared> {
        let inner = Arc::clone(&self.inner);
        self.inner
            .decoders
            .run(bytes, move |bytes, limits| prepare(bytes, limits, &inner.preprocess, colors))
            .await
    }
}

fn prepare(
    bytes: &[u8],
    limits: &DecodeLimits,
    preprocess: &PreprocessConfig,
    colors: bool,
) -> Result<Prepared> {
    let decoded = decode_for(bytes, limits, preprocess.width, preprocess.height)?;
    let pixels = Arc::new(preprocess.preprocess(&decoded)?);
    let appearance = colors.then(|| Appearance::of(&decoded));
    Ok(Prepared { pixels, image: ImageInfo::of(bytes, &decoded), appearance })
}
