//! From a request to a [`CaptionStream`]: the answer is cached, in flight, or new.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use tracing::{Instrument, Span};

use super::afterwards::continued;
use super::answer::{Answer, CaptionProgress};
use super::dispatch::Chosen;
use super::recipe::MAX_PREFIX;
use super::stream::{CallerContext, CaptionStream};
use super::work::{self, Beginning, CaptionTask, VisionCacheUse};
use super::{Appearance, CachePolicy, CaptionParams, Captioner, KeptParameters, Photo, Priority};
use crate::cache::{InFlight, Key};
use crate::engine::Ability;
use crate::metrics::{CacheName, Lookup};
use cutline_error::{Error, Result};

/// More bytes than this are hashed on a blocking thread. blake3 reads fewer within a millisecond.
const HASHED_INLINE: usize = 1 << 20;

/// What is asked of one photo or of several.
struct Request {
    params: CaptionParams,
    begin_with: Beginning,
    kept: Option<Arc<KeptParameters>>,
}

/// A photo with its hash and the key of its answer.
struct HashedPhoto {
    photo: Photo,
    request: Arc<Request>,
    hash: blake3::Hash,
    /// `None` if the answer is neither looked up nor stored.
    key: Option<Key>,
}

/// The result of looking up an answer.
enum AnswerLookup {
    Cached(Arc<Answer>, Option<Arc<Appearance>>),
    InFlight(Key),
    New,
}

impl Captioner {
    /// Starts the caption of one photo: [`start_all`](Self::start_all) with one photo.
    ///
    /// # Errors
    /// Those of [`start_all`](Self::start_all).
    pub async fn start(
        &self,
        photo: impl Into<Photo>,
        params: CaptionParams,
    ) -> Result<CaptionStream> {
        let photos = vec![photo.into()];
        let mut streams = self.start_all(photos, params, Priority::Interactive).await?;
        streams.pop().ok_or_else(|| Error::internal("an image was lost"))
    }

    /// Starts the captions of `photos` and returns one stream for each, in their order. Cached answers
    /// are available at once, answers in flight are joined, and for the others slots of the queue are
    /// reserved, all or none.
    ///
    /// A bad image is reported by its stream.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter),
    /// [`ModelNotFound`](cutline_error::ErrorKind::ModelNotFound), or
    /// [`QueueFull`](cutline_error::ErrorKind::QueueFull) if there are not enough slots or not enough
    /// memory for the model's input; or those of the [`Account`](super::Account) that pays.
    pub async fn start_all(
        &self,
        photos: Vec<Photo>,
        params: CaptionParams,
        priority: Priority,
    ) -> Result<Vec<CaptionStream>> {
        let afterwards = photos.iter().map(|photo| self.afterwards(photo, &params));
        let afterwards = afterwards.collect::<Result<_>>()?;
        Ok(continued(self.start_chosen(photos, params, priority).await?, afterwards))
    }

    /// [`start_all`](Self::start_all), with nothing that is done afterwards.
    async fn start_chosen(
        &self,
        photos: Vec<Photo>,
        params: CaptionParams,
        priority: Priority,
    ) -> Result<Vec<CaptionStream>> {
        // Routes are for captions.
        if params.question.is_some() {
            return self.start_here(photos, params, priority).await;
        }
        match self.chosen(&params)? {
            Chosen::Here => self.start_here(photos, params, priority).await,
            Chosen::Model(other) => self.paying(other).start_here(photos, params, priority).await,
            Chosen::Route(route) => {
                params.validate()?;
                params.check_recipe()?;
                // Here, because the backends work in tasks of their own.
                let model = params.model.as_deref().unwrap_or(&self.inner.info.id);
                let limits = params.clone().with_defaults(&self.inner.info.generation);
                let tokens = self.tokens_at_most(0, &limits);
                let mut charges = self.charges(model, photos.len(), tokens)?;
                let priority = self.priority(priority);
                let streams = route.start(&self.uncharged(), photos, &params, priority);
                let charged = |stream: CaptionStream| {
                    stream.charged(charges.as_mut().and_then(|charges| charges.next(true)))
                };
                Ok(streams.into_iter().map(charged).collect())
            }
        }
    }

    /// [`start_all`](Self::start_all) with this model, whatever the parameters say.
    ///
    /// # Errors
    /// Those of [`start_all`](Self::start_all).
    pub(crate) async fn start_here(
        &self,
        photos: Vec<Photo>,
        params: CaptionParams,
        priority: Priority,
    ) -> Result<Vec<CaptionStream>> {
        let begin = Instant::now();
        let request = Arc::new(self.request(params).await?);
        let photos = photos.into_iter().map(|photo| (photo, Arc::clone(&request))).collect();
        let photos = self.hash(photos).await?;
        self.admit(photos, priority, begin)
    }

    /// As [`start_all`](Self::start_all), with parameters of its own for each photo. If another model or a
    /// route answers some of them, each photo is started by itself.
    ///
    /// # Errors
    /// Those of [`start_all`](Self::start_all).
    pub async fn start_each(
        &self,
        photos: Vec<(Photo, CaptionParams)>,
        priority: Priority,
    ) -> Result<Vec<CaptionStream>> {
        let mut here = true;
        for (_, params) in &photos {
            here &= matches!(self.chosen(params)?, Chosen::Here);
        }
        if !here {
            let mut streams = Vec::with_capacity(photos.len());
            for (photo, params) in photos {
                let started = Box::pin(self.start_all(vec![photo], params, priority));
                streams.extend(started.await?);
            }
            return Ok(streams);
        }
        let begin = Instant::now();
        let mut requests = Vec::with_capacity(photos.len());
        let mut afterwards = Vec::with_capacity(photos.len());
        for (photo, params) in photos {
            afterwards.push(self.afterwards(&photo, &params)?);
            requests.push((photo, Arc::new(self.request(params).await?)));
        }
        let photos = self.hash(requests).await?;
        Ok(continued(self.admit(photos, priority, begin)?, afterwards))
    }

    /// Checks what is asked.
    async fn request(&self, params: CaptionParams) -> Result<Request> {
        params.validate()?;
        params.check_recipe()?;
        let params = params.with_defaults(&self.inner.info.generation);
        let ability = if params.question.is_some() { Ability::Answer } else { Ability::Caption };
        self.require(ability)?;
        let prompt = self.prompt(&params)?;
        let question = match &params.question {
            Some(question) if self.inner.info.family.reads() => {
                self.read_texts(std::slice::from_ref(question), None, "question").await?.concat()
            }
            Some(question) => self.framed(question)?,
            None => Vec::new(),
        };
        let kept = self.kept_parameters(&params);
        Ok(Request { params, begin_with: Beginning { prompt, question }, kept })
    }

    /// The ids of a question that the model continues.
    fn framed(&self, question: &str) -> Result<Vec<u32>> {
        let positions = self.inner.info.max_positions;
        let framed = self.inner.info.family.framed(question);
        // A word piece has at least one byte, so this bounds the work on absurd questions.
        let framed = framed.filter(|text| text.len() <= positions.saturating_mul(64));
        let ids = framed.map(|text| self.inner.tokenizer.encode(&text)).transpose()?;
        ids.filter(|ids| ids.len() + 1 < positions).ok_or_else(|| {
            Error::parameter(
                "question",
                format!(
                    "question and answer together may have {positions} word pieces with this model; \
                     shorten the question"
                ),
            )
        })
    }

    /// Checks what can be checked without a photo.
    ///
    /// # Errors
    /// Those of [`start_all`](Self::start_all) that all photos would get.
    pub fn check(&self, params: &CaptionParams) -> Result<()> {
        match self.chosen(params)? {
            Chosen::Here => self.prompt_tokens(params).map(drop),
            Chosen::Model(other) => other.prompt_tokens(params).map(drop),
            Chosen::Route(_) => params.validate(),
        }
    }

    /// The tokens of the prompt.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): it does not fit.
    pub fn prompt_tokens(&self, params: &CaptionParams) -> Result<usize> {
        self.prompt(params).map(|ids| ids.len())
    }

    /// The ids of the prompt, checked together with the requested length against the number of the
    /// model's positions.
    fn prompt(&self, params: &CaptionParams) -> Result<Vec<u32>> {
        let limit = self.inner.info.generation.max_new_tokens_limit;
        if params.max_new_tokens > limit {
            return Err(Error::parameter(
                "max_new_tokens",
                format!("max_new_tokens must be between 1 and {limit} for this model"),
            ));
        }
        let Some(text) = &params.prompt else { return Ok(Vec::new()) };
        // A word piece has at least one byte, so this bounds the work on absurd prompts.
        let positions = self.inner.info.max_positions;
        let ids = if text.len() > positions.saturating_mul(64) {
            None
        } else {
            Some(self.inner.tokenizer.encode(text)?).filter(|ids| ids.len() + 1 < positions)
        };
        if let Some(ids) = &ids
            && params.recipe.as_ref().is_some_and(|recipe| recipe.is_prefix)
            && ids.len() > MAX_PREFIX
        {
            let detail = format!(
                "the template makes {} word pieces, and a prefix may have {MAX_PREFIX}; shorten it, or a \
                 variable",
                ids.len()
            );
            return Err(Error::parameter("template", detail));
        }
        ids.ok_or_else(|| {
            Error::parameter(
                "prompt",
                format!(
                    "prompt and answer together may have {positions} word pieces with this model; \
                     shorten the prompt"
                ),
            )
        })
    }

    async fn hash(&self, photos: Vec<(Photo, Arc<Request>)>) -> Result<Vec<HashedPhoto>> {
        type Hashed = (blake3::Hash, Photo, Arc<Request>);
        let hash_all = |photos: Vec<(Photo, Arc<Request>)>| -> Vec<Hashed> {
            let hashed =
                |(photo, request): (Photo, _)| (blake3::hash(&photo.bytes), photo, request);
            photos.into_iter().map(hashed).collect()
        };
        let bytes: usize = photos.iter().map(|(photo, _)| photo.len()).sum();
        let hashed = if bytes <= HASHED_INLINE {
            hash_all(photos)
        } else {
            let hashing = tokio::task::spawn_blocking(move || hash_all(photos));
            hashing.await.map_err(|e| Error::internal("the hashing ended early").with_source(e))?
        };
        let with_key = |(hash, photo, request): Hashed| {
            let Request { params, begin_with, .. } = &*request;
            let key = match params.cache {
                CachePolicy::Bypass => None,
                CachePolicy::Use | CachePolicy::Refresh => {
                    let recipe = params.recipe.as_deref();
                    self.inner.keys.answer(&hash, begin_with, &params.generation(), recipe)
                }
            };
            HashedPhoto { photo, request, hash, key }
        };
        Ok(hashed.into_iter().map(with_key).collect())
    }

    /// Decides about all photos under one lock, so that equal photos among them are computed once.
    fn admit(
        &self,
        photos: Vec<HashedPhoto>,
        priority: Priority,
        begin: Instant,
    ) -> Result<Vec<CaptionStream>> {
        let inner = &self.inner;
        // Declared before the lock, so that on an error they are dropped after it: dropping the leader
        // of a flight takes the lock.
        let (mut streams, mut tasks) = (Vec::with_capacity(photos.len()), Vec::new());
        let priority = self.priority(priority);
        let mut flights = inner.flights.lock();
        let lookups = self.look_up(&photos, &flights);
        let new = lookups.iter().filter(|lookup| matches!(lookup, AnswerLookup::New)).count();
        // Slots and memory are reserved before any image is decoded.
        let mut slots = inner.scheduler.reserve(new, priority)?;
        let most = |photo: &HashedPhoto| {
            let Request { params, begin_with, .. } = &*photo.request;
            self.tokens_at_most(begin_with.prompt.len() + begin_with.question.len(), params)
        };
        let tokens = photos.iter().map(most).max().unwrap_or_default();
        let mut charges = self.charges(&inner.info.id, new, tokens)?;
        let input = inner.preprocess.input_bytes() as u64;
        let mut memory = inner.decoders.budget().take(input.saturating_mul(new as u64))?;
        for (HashedPhoto { photo, request, hash, key }, lookup) in photos.into_iter().zip(lookups) {
            let Request { params, begin_with, kept } = &*request;
            let prompt = &begin_with.prompt;
            let is_new = matches!(lookup, AnswerLookup::New);
            let charge = charges.as_mut().and_then(|charges| charges.next(is_new));
            let caller = CallerContext {
                captioner: self.clone(),
                begin,
                wants_colors: params.colors,
                text: params.text_style(),
                recipe: params.recipe.clone(),
                kept: kept.clone(),
                charge,
                prompt_tokens: inner.info.image_tokens + prompt.len() + begin_with.question.len(),
            };
            let stream = match lookup {
                AnswerLookup::Cached(answer, appearance) => {
                    CaptionStream::cached(caller, answer, appearance)
                }
                AnswerLookup::InFlight(key) => {
                    let progress = flights.join(&key);
                    let progress = progress.ok_or_else(|| Error::internal("a flight was lost"))?;
                    CaptionStream::joined(caller, progress, prompt.len())
                }
                AnswerLookup::New => {
                    let slot = slots.pop();
                    let slot = slot.ok_or_else(|| Error::internal("a queue slot was lost"))?;
                    let state = CaptionProgress { ids: prompt.clone(), ..Default::default() };
                    let (leader, progress) = flights.start(key, state);
                    let task = CaptionTask {
                        photo,
                        vision: self.vision_cache_use(&hash, params.cache),
                        #[cfg(feature = "redis")]
                        shared: self.shared_key(&hash, begin_with, params),
                        hash,
                        begin_with: begin_with.clone(),
                        params: params.generation(),
                        slot,
                        permit: memory.split(input),
                    };
                    tasks.push((leader, task));
                    CaptionStream::first(caller, progress)
                }
            };
            streams.push(stream);
        }
        drop(flights);
        for (leader, task) in tasks {
            // The work belongs to the trace of the request that started it.
            let work = work::drive(self.clone(), leader, task);
            tokio::spawn(work.instrument(Span::current()));
        }
        Ok(streams)
    }

    fn look_up(
        &self,
        photos: &[HashedPhoto],
        flights: &InFlight<'_, CaptionProgress>,
    ) -> Vec<AnswerLookup> {
        let mut new = HashSet::new();
        let metrics = &self.inner.metrics;
        let look_up = |photo: &HashedPhoto| {
            let policy = photo.request.params.cache;
            let Some(key) = photo.key.filter(|_| policy == CachePolicy::Use) else {
                return AnswerLookup::New;
            };
            if new.contains(&key) || flights.contains(&key) {
                metrics.lookup(CacheName::Answers, Lookup::Coalesced);
                return AnswerLookup::InFlight(key);
            }
            // After the flights, because a finishing flight stores its answer before it is gone.
            if let Some(answer) = self.inner.answers.get(&key) {
                metrics.lookup(CacheName::Answers, Lookup::Hit);
                return AnswerLookup::Cached(answer, self.seen(&photo.hash));
            }
            metrics.lookup(CacheName::Answers, Lookup::Miss);
            new.insert(key);
            AnswerLookup::New
        };
        photos.iter().map(look_up).collect()
    }

    /// How a photo looks, if captions are kept and its encoded image is cached: the library may have lost
    /// it since the answer was cached.
    fn seen(&self, image: &blake3::Hash) -> Option<Arc<Appearance>> {
        self.inner.appearance.filter(|_| self.inner.keeper.get().is_some())?;
        let entry = self.inner.encoded_images.get(&self.inner.keys.vision(image))?;
        let features = entry.encoded.features().map(<[f32]>::to_vec);
        Some(Arc::new(Appearance { preview: entry.preview, features }))
    }

    fn vision_cache_use(&self, image: &blake3::Hash, policy: CachePolicy) -> VisionCacheUse {
        let key = self.inner.keys.vision(image);
        match policy {
            CachePolicy::Use => VisionCacheUse::ReadWrite(key),
            CachePolicy::Refresh => VisionCacheUse::Write(key),
            CachePolicy::Bypass => VisionCacheUse::None,
        }
    }
}
