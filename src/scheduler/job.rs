//! One image on its way through queue and model, and what its caller hears of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::trace::JobTrace;
use crate::engine::{EncodedImage, GenerationParams, ImageInput, Job, JobId, Sequence, fresh_seed};
use cutline_error::{Error, ErrorKind, Result};

/// What is to be done.
#[derive(Debug, Clone)]
pub struct JobRequest {
    /// The image; with [`ImageInput::Encoded`] the vision tower is skipped.
    pub image: ImageInput,
    /// Token ids to continue, without the first (decoder-start) token; empty for none.
    pub prompt: Vec<u32>,
    /// How to decode.
    pub params: GenerationParams,
    /// When nobody wants the answer any more; the job then fails with
    /// [`InferenceTimeout`](ErrorKind::InferenceTimeout) before its next step.
    pub deadline: Option<Instant>,
}

/// What the caller of one job hears, in this order; [`Done`](Self::Done) or
/// [`Failed`](Self::Failed) is the last.
#[derive(Debug)]
pub enum JobEvent {
    /// The job left the queue; `queued` is how long it waited there.
    Started {
        /// Time in the queue.
        queued: Duration,
    },
    /// The vision tower ran for this job. Sent once, and not if the job came encoded.
    Encoded(Arc<EncodedImage>),
    /// The next token of the first sequence. Each is sent once, even if the job had to be started
    /// anew.
    Token(u32),
    /// The end of it.
    Done {
        /// Best first.
        sequences: Vec<Sequence>,
        /// From leaving the queue to the end.
        inference: Duration,
        /// The most jobs that shared a step with this one, itself included.
        batch_size: usize,
    },
    /// It failed, and nothing follows.
    Failed(Error),
}

/// One accepted job. Dropping it takes the job back.
#[derive(Debug)]
pub struct Submission {
    events: mpsc::Receiver<JobEvent>,
}

impl Submission {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<JobEvent> {
        self.events.recv().await
    }
}

/// Most events that a channel has room for; no position table is nearly as long.
const MAX_EVENTS: usize = 1 << 16;

/// A job, in the queue and then in the model.
#[derive(Debug)]
pub(super) struct ScheduledJob {
    pub(super) id: JobId,
    /// Encoded once the vision tower ran, so that a new start does not run it again.
    pub(super) image: ImageInput,
    prompt: Vec<u32>,
    params: GenerationParams,
    deadline: Option<Instant>,
    events: mpsc::Sender<JobEvent>,
    since: Instant,
    started: bool,
    /// When the decoder was first given it.
    decoding: Option<Instant>,
    /// The tokens that the caller has.
    sent: Vec<u32>,
    /// How many of them were written since the last start.
    repeated: usize,
    batch_size: usize,
    pub(super) trace: JobTrace,
    /// Whether it must be alone in the batch.
    pub(super) alone: bool,
    /// How often the device had no memory for the batch that it was in.
    pub(super) squeezed: usize,
}

impl ScheduledJob {
    /// A job and the end that its caller holds.
    pub(super) fn new(id: JobId, work: JobRequest) -> Result<(Self, Submission)> {
        let JobRequest { image, prompt, mut params, deadline } = work;
        params.validate()?;
        if params.do_sample && params.seed.is_none() {
            // Drawn here and not by the engine, so that a new start repeats what was sent already.
            params.seed = Some(fresh_seed());
        }
        // Room for every event that the job can have, so that the worker never waits for a reader.
        let (sender, events) = mpsc::channel(params.max_new_tokens.min(MAX_EVENTS) + 4);
        let entry = Self {
            id,
            image,
            prompt,
            params,
            deadline,
            events: sender,
            since: Instant::now(),
            started: false,
            decoding: None,
            sent: Vec::new(),
            repeated: 0,
            batch_size: 0,
            trace: JobTrace::waits(),
            alone: false,
            squeezed: 0,
        };
        Ok((entry, Submission { events }))
    }

    pub(super) fn rows(&self) -> usize {
        self.params.rows()
    }

    /// Whether nobody waits for it any more. A caller whose time is up is told so.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        if self.events.is_closed() {
            return true;
        }
        let overdue = self.deadline.is_some_and(|deadline| deadline <= now);
        if overdue {
            self.send(JobEvent::Failed(too_late()));
        }
        overdue
    }

    /// It leaves the queue, for the first time or anew: what the engine is to do.
    pub(super) fn start(&mut self, image: ImageInput) -> Job {
        self.repeated = 0;
        self.decoding.get_or_insert_with(Instant::now);
        self.trace.decoder(self.params.rows());
        let (prompt, params) = (self.prompt.clone(), self.params.clone());
        Job { id: self.id, image, prompt, params, written: self.sent.clone() }
    }

    /// Tells the caller, once, that it is in the model; how long it was in the queue, if it was told.
    pub(super) fn announce(&mut self, now: Instant) -> Option<Duration> {
        if self.started {
            return None;
        }
        self.started = true;
        self.trace.leaves();
        let queued = now.saturating_duration_since(self.since);
        self.since = now;
        self.send(JobEvent::Started { queued });
        Some(queued)
    }

    /// How long the decoder has had it.
    pub(super) fn decoding(&self, now: Instant) -> Duration {
        self.decoding.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Keeps what the vision tower made of its pixels.
    pub(super) fn encoded(&mut self, image: &Arc<EncodedImage>) {
        self.image = ImageInput::Encoded(Arc::clone(image));
        self.send(JobEvent::Encoded(Arc::clone(image)));
    }

    /// It takes part in a step with so many jobs.
    pub(super) fn in_batch_of(&mut self, jobs: usize) {
        self.batch_size = self.batch_size.max(jobs);
    }

    /// Sends a token, unless it was sent before the job was started anew.
    ///
    /// # Errors
    /// The token is not the one that was sent then, so the caller would read a mixture of both.
    pub(super) fn token(&mut self, token: u32) -> Result<()> {
        match self.sent.get(self.repeated) {
            Some(&before) if before != token => {
                return Err(Error::internal(format!(
                    "a job that was started anew wrote token {token} where it had written {before}"
                )));
            }
            Some(_) => {}
            None => {
                self.sent.push(token);
                self.send(JobEvent::Token(token));
            }
        }
        self.repeated += 1;
        Ok(())
    }

    pub(super) fn done(mut self, sequences: Vec<Sequence>, now: Instant) {
        // Before the caller hears of it, whose request may end at once.
        self.trace.leaves();
        let inference = now.saturating_duration_since(self.since);
        self.send(JobEvent::Done { sequences, inference, batch_size: self.batch_size });
    }

    pub(super) fn failed(mut self, error: Error) {
        self.trace.leaves();
        self.send(JobEvent::Failed(error));
    }

    /// The channel has room for all events of a job, so the only way to fail is that the caller
    /// left.
    fn send(&self, event: JobEvent) {
        let _ = self.events.try_send(event);
    }
}

fn too_late() -> Error {
    Error::new(
        ErrorKind::InferenceTimeout,
        "the caption was not ready in the time that it may take; ask for fewer tokens or beams, or \
         try again when the server is less busy",
    )
}
