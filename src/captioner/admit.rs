//! From what is asked for to a [`CaptionStream`]: whether it is known, under way, or new.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use tracing::{Instrument, Span};

use super::answer::{Answer, CaptionProgress};
use super::stream::{CallerContext, CaptionStream};
use super::work::{self, CaptionTask, VisionCacheUse};
use super::{CachePolicy, CaptionParams, Captioner, Photo, Priority};
use crate::cache::{InFlight, Key};
use crate::metrics::{CacheName, Lookup};
use cutline_error::{Error, Result};

/// More bytes than this are hashed on a thread that may take its time; blake3 reads them within a
/// millisecond.
const HASHED_AT_ONCE: usize = 1 << 20;

/// A photo and its place in the caches.
struct HashedPhoto {
    photo: Photo,
    hash: blake3::Hash,
    /// `None` where the answer is neither looked for nor kept.
    key: Option<Key>,
}

/// What there is of an answer already.
enum AnswerLookup {
    Cached(Arc<Answer>),
    InFlight(Key),
    New,
}

impl Captioner {
    /// Begins the caption of `photo` for somebody who waits for it: [`start_all`](Self::start_all)
    /// of one.
    ///
    /// # Errors
    /// Those of [`start_all`](Self::start_all).
    pub async fn start(
        &self,
        photo: impl Into<Photo>,
        params: CaptionParams,
    ) -> Result<CaptionStream> {
        let photos = vec![photo.into()];
        let mut runs = self.start_all(photos, params, Priority::Interactive).await?;
        runs.pop().ok_or_else(|| Error::internal("an image was lost"))
    }

    /// Begins the captions of `photos`, one run for each, in their order. Those that the cache
    /// knows are there at once; those that are under way already are joined; for the others slots
    /// in the queue are taken, all of them at once or none.
    ///
    /// What is wrong with a single image is said by its run.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), or
    /// [`QueueFull`](cutline_error::ErrorKind::QueueFull) when there are not enough slots, or not
    /// enough memory for what the model would read.
    pub async fn start_all(
        &self,
        photos: Vec<Photo>,
        params: CaptionParams,
        priority: Priority,
    ) -> Result<Vec<CaptionStream>> {
        let begin = Instant::now();
        params.validate()?;
        let prompt = self.prompt(&params)?;
        let asked = self.identify(photos, &prompt, &params).await?;
        self.begin(asked, &prompt, &params, priority, begin)
    }

    /// The prompt's ids, checked with the length asked for against the model's position table.
    fn prompt(&self, params: &CaptionParams) -> Result<Vec<u32>> {
        let limit = self.inner.info.generation.max_new_tokens_limit;
        if params.max_new_tokens > limit {
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

    async fn identify(
        &self,
        photos: Vec<Photo>,
        prompt: &[u32],
        params: &CaptionParams,
    ) -> Result<Vec<HashedPhoto>> {
        let hash_all = |photos: Vec<Photo>| -> Vec<(blake3::Hash, Photo)> {
            photos.into_iter().map(|photo| (blake3::hash(&photo.bytes), photo)).collect()
        };
        let hashed = if photos.iter().map(Photo::len).sum::<usize>() <= HASHED_AT_ONCE {
            hash_all(photos)
        } else {
            let hashing = tokio::task::spawn_blocking(move || hash_all(photos));
            hashing.await.map_err(|e| Error::internal("the hashing ended early").with_source(e))?
        };
        let generation = params.generation();
        let asked = |(hash, photo)| {
            let key = match params.cache {
                CachePolicy::Bypass => None,
                CachePolicy::Use | CachePolicy::Refresh => {
                    self.inner.keys.answer(&hash, prompt, &generation)
                }
            };
            HashedPhoto { photo, hash, key }
        };
        Ok(hashed.into_iter().map(asked).collect())
    }

    /// Decides for all photos at one moment, so that equal ones among them are computed once.
    fn begin(
        &self,
        asked: Vec<HashedPhoto>,
        prompt: &[u32],
        params: &CaptionParams,
        priority: Priority,
        begin: Instant,
    ) -> Result<Vec<CaptionStream>> {
        let inner = &self.inner;
        let text = params.text_style();
        // Before the flights, so that they are dropped after it if something fails: a flight that is
        // closed asks for the flights itself.
        let (mut runs, mut tasks) = (Vec::with_capacity(asked.len()), Vec::new());
        let mut flights = inner.flights.lock();
        let found = self.find(&asked, params.cache, &flights);
        let new = found.iter().filter(|found| matches!(found, AnswerLookup::New)).count();
        // Before any work on the images: what cannot be queued need not be decoded.
        let mut slots = inner.scheduler.reserve(new, priority)?;
        // And the pixels that the model will read of each.
        let input = inner.preprocess.input_bytes() as u64;
        let mut memory = inner.decoders.budget().take(input.saturating_mul(new as u64))?;
        for (HashedPhoto { photo, hash, key }, found) in asked.into_iter().zip(found) {
            let caller =
                CallerContext { captioner: self.clone(), begin, colors: params.colors, text };
            let run = match found {
                AnswerLookup::Cached(answer) => CaptionStream::known(caller, answer),
                AnswerLookup::InFlight(key) => {
                    let progress = flights.join(&key);
                    let progress = progress.ok_or_else(|| Error::internal("a flight was lost"))?;
                    CaptionStream::joined(caller, progress, prompt.len())
                }
                AnswerLookup::New => {
                    let slot = slots.pop();
                    let slot = slot.ok_or_else(|| Error::internal("a queue slot was lost"))?;
                    let state =
                        CaptionProgress { ids: prompt.to_vec(), ..CaptionProgress::default() };
                    let (leader, progress) = flights.start(key, state);
                    let task = CaptionTask {
                        photo,
                        vision: self.vision_use(&hash, params.cache),
                        hash,
                        prompt: prompt.to_vec(),
                        params: params.generation(),
                        slot,
                        permit: memory.split(input),
                    };
                    tasks.push((leader, task));
                    CaptionStream::first(caller, progress)
                }
            };
            runs.push(run);
        }
        drop(flights);
        for (leader, task) in tasks {
            // In the trace of the request that came first.
            let work = work::drive(self.clone(), leader, task);
            tokio::spawn(work.instrument(Span::current()));
        }
        Ok(runs)
    }

    fn find(
        &self,
        asked: &[HashedPhoto],
        policy: CachePolicy,
        flights: &InFlight<'_, CaptionProgress>,
    ) -> Vec<AnswerLookup> {
        let mut new = HashSet::new();
        let metrics = &self.inner.metrics;
        let find = |asked: &HashedPhoto| {
            let Some(key) = asked.key.filter(|_| policy == CachePolicy::Use) else {
                return AnswerLookup::New;
            };
            if new.contains(&key) || flights.contains(&key) {
                metrics.lookup(CacheName::Answers, Lookup::Coalesced);
                return AnswerLookup::InFlight(key);
            }
            // After the flights: one that lands leaves its answer here before it is gone.
            self.inner.answers.get(&key).map_or_else(
                || {
                    metrics.lookup(CacheName::Answers, Lookup::Miss);
                    new.insert(key);
                    AnswerLookup::New
                },
                |answer| {
                    metrics.lookup(CacheName::Answers, Lookup::Hit);
                    AnswerLookup::Cached(answer)
                },
            )
        };
        asked.iter().map(find).collect()
    }

    fn vision_use(&self, image: &blake3::Hash, policy: CachePolicy) -> VisionCacheUse {
        let key = self.inner.keys.vision(image);
        match policy {
            CachePolicy::Use => VisionCacheUse::ReadWrite(key),
            CachePolicy::Refresh => VisionCacheUse::Write(key),
            CachePolicy::Bypass => VisionCacheUse::None,
        }
    }
}
