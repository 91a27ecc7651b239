//! The engine over a loaded BLIP: which jobs are in the batch, and what each does with its logits.

use std::sync::Arc;
use std::time::Instant;

use crate::engine::backend::{Backend, Encoded, Item, Read, Scores};
use crate::engine::timings::{Timings, timed};
use crate::engine::{EncodedImage, Engine, EngineInfo, Event, ImageInput, Job, JobId, PixelValues};
use cutline_error::{Error, Result};
use cutline_generate::{Decoder, DecoderInput, GenerationParams, Progress, Step};

/// A BLIP captioner with the batch that it is working on.
#[derive(Debug)]
pub struct LocalEngine {
    model: Backend,
    info: EngineInfo,
    /// Jobs and the batch's items correspond by index.
    jobs: Vec<Active>,
    items: Vec<Item>,
    timings: Timings,
}

#[derive(Debug)]
struct Active {
    id: JobId,
    decoder: Decoder,
    next: Next,
}

/// What a job does in the next step.
#[derive(Debug)]
enum Next {
    /// Chooses from the logits of its prompt, which are there already.
    Choose(Vec<f32>),
    /// Reads these tokens: one a row, or its first ones.
    Read(Vec<u32>),
}

impl LocalEngine {
    /// An engine without work.
    pub fn new(model: impl Into<Backend>) -> Self {
        let model = model.into();
        let info = model.describe();
        Self { model, info, jobs: Vec::new(), items: Vec::new(), timings: Timings::default() }
    }

    /// The loaded model.
    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// How many jobs are in the batch.
    #[must_use]
    pub fn active(&self) -> usize {
        self.jobs.len()
    }

    /// Where the time went since the last call, or since the beginning.
    pub fn take_timings(&mut self) -> Timings {
        std::mem::take(&mut self.timings)
    }

    /// Has the device do what was put off for the jobs that were started, and waits until it is idle.
    ///
    /// # Errors
    /// Some of it failed.
    pub fn wait(&mut self) -> Result<()> {
        self.model.prefill_cross_kv()?;
        self.model.wait()
    }

    /// Captions a grey image of this size, so that the first real one does not pay for what is set
    /// up lazily.
    ///
    /// # Errors
    /// The model cannot run here, the size is no multiple of the patch, or there is work already.
    pub fn warm_up(&mut self, width: usize, height: usize) -> Result<()> {
        if !self.jobs.is_empty() {
            return Err(Error::internal("the engine is warmed up only before there is work"));
        }
        let pixels = PixelValues { data: vec![0.0; 3 * width * height], width, height };
        let params =
            GenerationParams { max_new_tokens: 3, num_beams: 2, ..GenerationParams::default() };
        let id = JobId(u64::MAX);
        self.start(Job::new(id, pixels, Vec::new(), params))?;
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

    /// What every job has to choose from, in the order of the jobs.
    fn forward(&mut self) -> Result<Vec<Scores>> {
        let mut reads = Vec::with_capacity(self.jobs.len());
        for (job, item) in self.jobs.iter().zip(&mut self.items) {
            if let Next::Read(tokens) = &job.next {
                self.timings.tokens += item.rows() as u64;
                reads.push(Read { item, tokens, best: job.decoder.top_logits_needed() });
            }
        }
        let read = if reads.is_empty() { Vec::new() } else { self.model.read(&mut reads)? };
        let mut read = read.into_iter();
        let share = |job: &mut Active| match &mut job.next {
            Next::Choose(ready) => Some(Scores::Logits(std::mem::take(ready))),
            Next::Read(_) => read.next(),
        };
        let all: Option<Vec<_>> = self.jobs.iter_mut().map(share).collect();
        all.ok_or_else(|| Error::internal("a step left a job out"))
    }

    /// One job's share of a step; the events that come of it, and whether the job goes on.
    fn choose(&mut self, index: usize, scores: &Scores, events: &mut Vec<Event>) -> Result<bool> {
        let step = self.decide(index, scores)?;
        let Active { id, next, .. } = &mut self.jobs[index];
        let job = *id;
        if let Some(token) = step.newest {
            events.push(Event::Token { job, token });
        }
        match step.progress {
            Progress::Finished(sequences) => {
                events.push(Event::Done { job, sequences });
                Ok(false)
            }
            Progress::Continue { tokens, sources } => {
                self.model.reorder(&mut self.items[index], &sources)?;
                *next = Next::Read(tokens);
                Ok(true)
            }
        }
    }

    fn decide(&mut self, index: usize, scores: &Scores) -> Result<Step> {
        let decoder = &mut self.jobs[index].decoder;
        match scores {
            Scores::Logits(logits) => {
                check_finite(logits, self.info.vocab_size)?;
                Ok(decoder.advance(logits))
            }
            Scores::Best(best) => match decoder.advance_with_top_logits(best) {
                Some(step) => Ok(step),
                // Rare: two tokens that are equal where the choice is cut off.
                None => Ok(decoder.advance(&self.model.logits(&self.items[index])?)),
            },
            Scores::NotFinite => Err(Error::internal("the model's logits are not finite")),
        }
    }

    fn forget(&mut self, index: usize) {
        self.jobs.remove(index);
        let item = self.items.remove(index);
        self.model.recycle(item);
    }

    /// Checks what only the model knows; how many tokens there may be, prompt included.
    fn check(&self, job: &Job) -> Result<usize> {
        job.params.validate()?;
        if self.jobs.iter().any(|active| active.id == job.id) {
            return Err(Error::internal(format!("there is a job {} already", job.id.0)));
        }
        let places = self.info.max_positions;
        let first = 1 + job.prompt.len();
        if first >= places {
            return Err(Error::parameter(
                "prompt",
                format!(
                    "the prompt has {} tokens, but at most {} leave room for an answer; shorten it",
                    job.prompt.len(),
                    places - 2
                ),
            ));
        }
        Ok(places.min(first + job.params.max_new_tokens))
    }
}

impl Engine for LocalEngine {
    fn encode(&mut self, images: &[Arc<PixelValues>]) -> Result<Vec<EncodedImage>> {
        let mut encoded: Vec<Option<EncodedImage>> = images.iter().map(|_| None).collect();
        let mut rest: Vec<usize> = (0..images.len()).collect();
        while let Some(&first) = rest.first() {
            let (width, height) = (images[first].width, images[first].height);
            let mut room = self.model.vision_batch(width, height).max(1);
            let together: Vec<usize> = rest
                .extract_if(.., |n| {
                    let fits = room > 0 && (images[*n].width, images[*n].height) == (width, height);
                    room -= usize::from(fits);
                    fits
                })
                .collect();
            let pixels: Vec<&[f32]> = together.iter().map(|&n| images[n].data.as_slice()).collect();
            let (model, spent) = (&mut self.model, &mut self.timings);
            let some = timed(&mut spent.vision, || model.encode_all(&pixels, width, height))?;
            spent.images += some.len() as u64;
            for (n, image) in together.into_iter().zip(some) {
                let bytes = image.bytes();
                encoded[n] = Some(EncodedImage::new(image, bytes));
            }
        }
        let all: Option<Vec<_>> = encoded.into_iter().collect();
        all.ok_or_else(|| Error::internal("an image was left out"))
    }

    fn start(&mut self, job: Job) -> Result<()> {
        let max_length = self.check(&job)?;
        let text = &self.model.config().text;
        let mut prompt = vec![text.bos_token_id];
        prompt.extend(&job.prompt);
        text.check_tokens(&prompt)?;
        let (end, vocabulary) = (text.sep_token_id, text.vocab_size);
        let image = match job.image {
            ImageInput::Encoded(image) => image,
            ImageInput::Pixels(pixels) => Arc::new(self.encode_one(pixels)?),
        };
        let states = image
            .content::<Encoded>()
            .ok_or_else(|| Error::internal("the image was encoded by another kind of engine"))?;
        let (model, spent) = (&mut self.model, &mut self.timings);
        // The last token is written, but never read.
        let (places, rows) = (max_length - 1, job.params.rows());
        let mut item = timed(&mut spent.cross_kv, || model.begin(states, places, rows))?;
        // A single token is read in the next step, together with those of the other jobs.
        let next = if prompt.len() == 1 || model.reads_prompts_in_steps() {
            Next::Read(prompt.clone())
        } else {
            spent.tokens += 1;
            Next::Choose(timed(&mut spent.decode, || model.prefill(&mut item, &prompt))?)
        };
        let forced = job.written;
        let decoder =
            Decoder::new(&job.params, DecoderInput { prompt, end, vocabulary, max_length, forced });
        self.jobs.push(Active { id: job.id, decoder, next });
        self.items.push(item);
        Ok(())
    }

    fn step(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let (model, spent) = (&mut self.model, &mut self.timings);
        timed(&mut spent.cross_kv, || model.prefill_cross_kv())?;
        let begin = Instant::now();
        let mut ended = Vec::new();
        for (index, scores) in self.forward()?.into_iter().enumerate() {
            match self.choose(index, &scores, events) {
                Ok(true) => {}
                Ok(false) => ended.push(index),
                Err(error) => {
                    events.push(Event::Failed { job: self.jobs[index].id, error });
                    ended.push(index);
                }
            }
        }
        for index in ended.into_iter().rev() {
            self.forget(index);
        }
        self.timings.decode += begin.elapsed();
        Ok(())
    }

    fn cancel(&mut self, job: JobId) {
        if let Some(index) = self.jobs.iter().position(|active| active.id == job) {
            self.forget(index);
        }
    }

    fn reset(&mut self) {
        self.jobs.clear();
        self.items.clear();
        self.model.renew();
    }
}

fn check_finite(logits: &[f32], vocabulary: usize) -> Result<()> {
    let Some(place) = logits.iter().position(|logit| !logit.is_finite()) else { return Ok(()) };
    let (value, token) = (logits[place], place % vocabulary);
    Err(Error::internal(format!("the model's logits are not finite: {value} for token {token}")))
}
