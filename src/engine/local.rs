//! The engine over a loaded BLIP: which jobs are in the batch, and what each does with its logits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::DeviceLocation;

use super::compare::{self, ActiveComparison, SeenImage};
use super::{
    Ability, Comparison, EncodedImage, Engine, EngineInfo, Event, Family, GpuInfo, ImageInput, Job,
    JobId, MAX_BEAMS, PixelValues, Work,
};
use cutline_blip::{ImageStates, Model, ModelDescription, Read, Scores, Slot, SlotSize};
use cutline_error::{Error, Result};
use cutline_generate::{Decoder, DecoderInput, GenerationParams, Progress, Step, Task};

/// A BLIP with the batch that it is working on.
#[derive(Debug)]
pub struct LocalEngine {
    pub(super) model: Box<dyn Model>,
    pub(super) info: EngineInfo,
    jobs: Vec<ActiveJob>,
    pub(super) comparisons: Vec<ActiveComparison>,
    /// What the text encoder attended to last.
    pub(super) seen: Option<SeenImage>,
    timings: Timings,
    /// Whether something failed since the device was last known to work.
    suspicious: bool,
    /// Whether encoded images get their features.
    features: bool,
}

/// A job in the batch.
#[derive(Debug)]
struct ActiveJob {
    id: JobId,
    decoder: Decoder,
    slot: Slot,
    /// The tokens that the next step reads: the first ones of a new job, then one for each row.
    next: Vec<u32>,
    /// Tokens of each sequence that nobody gets: those that stand for the image, and a question.
    hidden: usize,
}

/// Where the engine's time went since the last call of
/// [`take_timings`](LocalEngine::take_timings).
///
/// These are wall-clock times of the calls. If a device is still working when a call returns, the
/// rest of its time counts where its results are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Pixels to the image's states.
    pub vision: Duration,
    /// The image's states to the keys and values of the decoder's cross-attention.
    pub cross_kv: Duration,
    /// Everything after that: prompts, steps, and choosing tokens.
    pub decode: Duration,
    /// Images that were encoded.
    pub images: u64,
    /// Rows whose logits were computed, over all steps.
    pub tokens: u64,
}

impl LocalEngine {
    /// An engine without jobs.
    #[must_use]
    pub fn new(model: Box<dyn Model>) -> Self {
        let info = describe(&*model);
        Self {
            model,
            info,
            jobs: Vec::new(),
            comparisons: Vec::new(),
            seen: None,
            timings: Timings::default(),
            suspicious: false,
            features: false,
        }
    }

    /// From now on, encoded images have their [features](EncodedImage::features): the class token of the
    /// vision tower.
    pub fn keep_features(&mut self) {
        self.features = true;
    }

    /// The loaded model.
    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// How many jobs are in the batch.
    #[must_use]
    pub fn active(&self) -> usize {
        self.jobs.len() + self.comparisons.len()
    }

    /// An upper bound of the memory in bytes, in RAM and beyond what the process has now, that jobs
    /// with together `rows` rows and images of this size take.
    #[must_use]
    pub fn batch_bytes(&self, rows: usize, width: usize, height: usize) -> u64 {
        // A job that is wider than the batch runs alone.
        self.model.describe().batch_bytes(rows, rows.max(MAX_BEAMS), width, height)
    }

    /// Where the time went since the last call, or since the engine was made.
    pub fn take_timings(&mut self) -> Timings {
        std::mem::take(&mut self.timings)
    }

    /// Makes the device do the deferred work of the jobs that were started, and waits until it is
    /// idle.
    ///
    /// # Errors
    /// Some of the work failed.
    pub fn synchronize(&mut self) -> Result<()> {
        self.model.prefill_cross_kv()?;
        self.model.synchronize()
    }

    /// Works on a grey image of this size, so that lazy initialisation does not slow down the first
    /// real one.
    ///
    /// # Errors
    /// The model cannot run here, the size is no multiple of the patch, or there are jobs already.
    pub fn warm_up(&mut self, width: usize, height: usize) -> Result<()> {
        if self.active() > 0 {
            return Err(Error::internal("the engine can be warmed up only before there are jobs"));
        }
        let pixels = PixelValues { data: vec![0.0; 3 * width * height], width, height };
        let params =
            GenerationParams { max_new_tokens: 3, num_beams: 2, ..GenerationParams::default() };
        let id = JobId(u64::MAX);
        let text = vec![self.model.describe().config.text.sep_token_id; 3];
        let work = match self.info.family {
            Family::Captioning | Family::Blip2 => params.into(),
            Family::QuestionAnswering => Work::Answer { question: text, task: params.into() },
            Family::Retrieval => {
                let (matching, embedding) = (true, true);
                Work::Compare(Arc::new(Comparison { texts: vec![text], matching, embedding }))
            }
        };
        self.start(Job::new(id, pixels, Vec::new(), work))?;
        let mut events = Vec::new();
        while self.active() > 0 {
            self.step(&mut events)?;
        }
        match events.into_iter().find_map(|event| match event {
            Event::Failed { error, .. } => Some(error),
            _ => None,
        }) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// [`encode`](Engine::encode) of one image.
    ///
    /// # Errors
    /// As [`encode`](Engine::encode).
    pub fn encode_one(&mut self, pixels: Arc<PixelValues>) -> Result<EncodedImage> {
        let image = self.encode(&[pixels])?.pop();
        image.ok_or_else(|| Error::internal("an image was not encoded"))
    }

    /// Reads every job's next tokens; the scores are in the order of the jobs.
    fn forward(&mut self) -> Result<Vec<Scores>> {
        if self.jobs.is_empty() {
            return Ok(Vec::new());
        }
        let mut reads = Vec::with_capacity(self.jobs.len());
        for job in &mut self.jobs {
            self.timings.tokens += job.slot.rows() as u64;
            let top = job.decoder.top_logits_needed();
            reads.push(Read { slot: &mut job.slot, tokens: &job.next, top });
        }
        self.model.read(&mut reads)
    }

    /// Chooses a job's next tokens, reports them, and says whether the job goes on.
    fn advance(&mut self, index: usize, scores: &Scores, events: &mut Vec<Event>) -> Result<bool> {
        let vocabulary = self.info.vocab_size;
        let first = self.model.describe().config.text.bos_token_id;
        let ActiveJob { id, decoder, slot, next, hidden } = &mut self.jobs[index];
        let job = *id;
        let step = choose(decoder, slot, scores, vocabulary)?;
        if let Some(token) = step.newest {
            events.push(Event::Token { job, token });
        }
        match step.progress {
            Progress::Finished(mut sequences) => {
                for sequence in &mut sequences {
                    sequence.ids.drain(..*hidden);
                    // Behind a question stands its last token.
                    if let Some(id) = sequence.ids.first_mut() {
                        *id = first;
                    }
                }
                events.push(Event::Done { job, sequences });
                Ok(false)
            }
            Progress::Continue { tokens, sources } => {
                slot.reorder(&sources)?;
                *next = tokens;
                Ok(true)
            }
        }
    }

    /// Asks the device after a failure whether it still works. A panic says nothing about it, and libraries
    /// panic where they should return the driver's error.
    fn check_device(&mut self) -> Result<()> {
        if self.suspicious {
            self.model.synchronize()?;
            self.suspicious = false;
        }
        Ok(())
    }

    /// The question of a model that has no text encoder, and continues it instead.
    fn continued<'a>(&self, work: &'a Work) -> &'a [u32] {
        match work {
            Work::Answer { question, .. } if !self.info.family.reads() => question,
            _ => &[],
        }
    }

    /// What stands for an image where tokens are counted.
    fn image_tokens(&self) -> Vec<u32> {
        let query = self.model.describe().config.query.as_ref();
        query.map_or_else(Vec::new, |query| vec![query.image_token; query.tokens])
    }

    fn class_token(&self, states: &ImageStates) -> Result<Option<Vec<f32>>> {
        // The rows for a language model have no class token.
        if !self.features || self.model.describe().config.query.is_some() {
            return Ok(None);
        }
        states.class_token(self.model.describe().config.vision.hidden_size).map(Some)
    }

    /// The image of a job, encoded now if it was not before.
    fn encoded(&mut self, image: ImageInput) -> Result<Option<Arc<EncodedImage>>> {
        match image {
            ImageInput::Nothing => Ok(None),
            ImageInput::Encoded(image) => Ok(Some(image)),
            ImageInput::Pixels(pixels) => Ok(Some(Arc::new(self.encode_one(pixels)?))),
        }
    }

    fn remove(&mut self, index: usize) {
        let job = self.jobs.remove(index);
        self.model.recycle(job.slot);
    }

    /// Checks the job. Returns the longest sequence that it may get, prompt included.
    fn check(&self, job: &Job) -> Result<usize> {
        job.task.validate()?;
        let mut others = self.jobs.iter().map(|active| active.id);
        let mut comparisons = self.comparisons.iter().map(|active| active.id);
        if others.any(|id| id == job.id) || comparisons.any(|id| id == job.id) {
            return Err(Error::internal(format!("there is a job {} already", job.id.0)));
        }
        let family = self.info.family;
        match &job.task {
            Work::Decode(_) => family.check(Ability::Caption)?,
            Work::Answer { .. } => family.check(Ability::Answer)?,
            Work::Compare(_) => family.check(Ability::Score)?,
        }
        let positions = self.info.max_positions;
        let first = 1 + job.prompt.len() + self.continued(&job.task).len();
        if first >= positions {
            return Err(Error::parameter(
                "prompt",
                format!(
                    "the prompt has {} tokens, but at most {} leave room for an answer; shorten it",
                    job.prompt.len(),
                    positions - 2
                ),
            ));
        }
        if let Some(Task::Rank(set)) = job.task.task() {
            self.model.describe().config.text.check_tokens(&[set.greatest_token()])?;
            if first + set.longest() > positions {
                return Err(Error::internal("a text to rank is longer than the model can read"));
            }
        }
        Ok(positions.min(first + job.task.max_new_tokens()))
    }
}

impl Engine for LocalEngine {
    fn encode(&mut self, images: &[Arc<PixelValues>]) -> Result<Vec<EncodedImage>> {
        self.check_device()?;
        let mut encoded: Vec<Option<EncodedImage>> = images.iter().map(|_| None).collect();
        let mut rest: Vec<usize> = (0..images.len()).collect();
        // Images of one size are encoded together, as many as the vision tower takes at once.
        while let Some(&first) = rest.first() {
            let (width, height) = (images[first].width, images[first].height);
            let mut free = self.model.vision_batch(width, height).max(1);
            let batch: Vec<usize> = rest
                .extract_if(.., |n| {
                    let fits = free > 0 && (images[*n].width, images[*n].height) == (width, height);
                    free -= usize::from(fits);
                    fits
                })
                .collect();
            let pixels: Vec<&[f32]> = batch.iter().map(|&n| images[n].data.as_slice()).collect();
            let (model, spent) = (&mut self.model, &mut self.timings);
            let states = timed(&mut spent.vision, || model.encode(&pixels, width, height))?;
            spent.images += states.len() as u64;
            for (n, states) in batch.into_iter().zip(states) {
                let bytes = states.bytes();
                let features = self.class_token(&states)?;
                let image = EncodedImage::new(states, bytes);
                encoded[n] = Some(match features {
                    Some(features) => image.with_features(features),
                    None => image,
                });
            }
        }
        let all: Option<Vec<_>> = encoded.into_iter().collect();
        all.ok_or_else(|| Error::internal("an image was not encoded"))
    }

    fn start(&mut self, job: Job) -> Result<()> {
        self.check_device()?;
        let max_length = self.check(&job)?;
        let text = &self.model.describe().config.text;
        let mut prompt = vec![text.bos_token_id];
        prompt.extend(&job.prompt);
        let continued = self.continued(&job.task);
        prompt.extend(continued);
        let continued = continued.len();
        text.check_tokens(&prompt)?;
        let (end, vocabulary) = (text.sep_token_id, text.vocab_size);
        let image = self.encoded(job.image)?;
        let (question, task) = match job.task {
            Work::Decode(task) => (Vec::new(), task),
            Work::Answer { question, task } => (question, task),
            Work::Compare(comparison) => return self.start_comparison(job.id, image, comparison),
        };
        let image = image.ok_or_else(|| Error::internal("a job to decode has no image"))?;
        let answered;
        let states = if question.is_empty() || continued > 0 {
            compare::states(&image)?
        } else {
            answered = self.read_question(&image, &question)?;
            &answered
        };
        let (model, spent) = (&mut self.model, &mut self.timings);
        // The last token is written, but never read.
        let least = prompt.len() + task.min_new_tokens().saturating_sub(1);
        let size = SlotSize { capacity: max_length - 1, rows: task.rows(), least };
        let slot = timed(&mut spent.cross_kv, || model.begin(states, size))?;
        let (next, forced) = (prompt.clone(), job.written);
        // As in transformers, penalties count the tokens that stand for the image.
        let image = self.image_tokens();
        let (prompt, max_length) = ([image.as_slice(), &prompt].concat(), image.len() + max_length);
        let input = DecoderInput { prompt, end, vocabulary, max_length, forced };
        let decoder = match task {
            Task::Write(params) => Decoder::new(&params, input),
            Task::Rank(set) => Decoder::rank(set, input),
        };
        let hidden = image.len() + continued;
        self.jobs.push(ActiveJob { id: job.id, decoder, slot, next, hidden });
        Ok(())
    }

    fn step(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let (model, spent) = (&mut self.model, &mut self.timings);
        timed(&mut spent.cross_kv, || model.prefill_cross_kv())?;
        let begin = Instant::now();
        let mut ended = Vec::new();
        for (index, scores) in self.forward()?.into_iter().enumerate() {
            match self.advance(index, &scores, events) {
                Ok(true) => {}
                Ok(false) => ended.push(index),
                Err(error) => {
                    events.push(Event::Failed { job: self.jobs[index].id, error });
                    ended.push(index);
                }
            }
        }
        for index in ended.into_iter().rev() {
            self.remove(index);
        }
        self.step_comparisons(events);
        self.timings.decode += begin.elapsed();
        Ok(())
    }

    fn cancel(&mut self, job: JobId) {
        if let Some(index) = self.jobs.iter().position(|active| active.id == job) {
            self.remove(index);
        }
        self.comparisons.retain(|active| active.id != job);
    }

    fn reset(&mut self) {
        self.suspicious = true;
        self.jobs.clear();
        self.comparisons.clear();
        self.seen = None;
        self.model.reset();
    }
}

fn choose(decoder: &mut Decoder, slot: &Slot, scores: &Scores, vocabulary: usize) -> Result<Step> {
    match scores {
        Scores::Logits(logits) => {
            check_finite(logits, vocabulary)?;
            Ok(decoder.advance(logits))
        }
        Scores::Top(top) => match decoder.advance_with_top_logits(top) {
            Some(step) => Ok(step),
            // Rare: a token that was cut off may have the same logit as one that was not.
            None => Ok(decoder.advance(&slot.logits()?)),
        },
        Scores::NotFinite => Err(Error::internal("the model's logits are not finite")),
    }
}

fn check_finite(logits: &[f32], vocabulary: usize) -> Result<()> {
    let Some(index) = logits.iter().position(|logit| !logit.is_finite()) else { return Ok(()) };
    let (value, token) = (logits[index], index % vocabulary);
    Err(Error::internal(format!("the model's logits are not finite: {value} for token {token}")))
}

fn describe(model: &dyn Model) -> EngineInfo {
    let ModelDescription { config, parameters, precision, kernels, device } = model.describe();
    let side = config.vision.image_size;
    let embeds = config.family.check(Ability::Embed).is_ok();
    EngineInfo {
        family: config.family,
        embedding_size: embeds.then_some(config.image_text_hidden_size),
        parameters: *parameters,
        precision: (*precision).to_owned(),
        kernels: kernels.clone(),
        device: match device.location() {
            DeviceLocation::Cpu => "cpu".to_owned(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        },
        gpu: GpuInfo::of(device),
        image_size: side,
        patch_size: config.vision.patch_size,
        vocab_size: config.text.vocab_size,
        max_positions: config.text.max_position_embeddings,
        threads: cutline_kernels::threads(),
        vision_batch: model.vision_batch(side, side),
    }
}

/// Runs `work` and adds its time to `total`.
fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    *total += begin.elapsed();
    result
}
