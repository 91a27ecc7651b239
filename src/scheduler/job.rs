//! One image on its way through queue and model, the events that its caller receives, and its part
//! of the request's trace.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{Level, Span};

use crate::engine::{
    Compared, EncodedImage, ImageInput, Job, JobId, Sequence, Task, Work, fresh_seed,
};
use cutline_error::{Error, Result};

/// A job to do.
#[derive(Debug, Clone)]
pub struct JobRequest {
    /// The image; with [`ImageInput::Encoded`] the vision tower is skipped.
    pub image: ImageInput,
    /// Token ids to continue, without the first (decoder-start) token; empty for none.
    pub prompt: Vec<u32>,
    /// What to do.
    pub task: Work,
}

/// The events of a job, in this order. One of the last three ends it.
#[derive(Debug)]
pub enum JobEvent {
    /// The job left the queue.
    Started {
        /// Time in the queue.
        queued: Duration,
    },
    /// The vision tower ran for this job. Sent at most once, and not if the job came encoded.
    Encoded(Arc<EncodedImage>),
    /// The next token of the first sequence. Each token is sent once, even if the job is restarted.
    Token(u32),
    /// The job is finished.
    Done {
        /// Best first.
        sequences: Vec<Sequence>,
        /// Time from leaving the queue to the end.
        inference: Duration,
        /// The largest number of jobs in a decode step of this job, itself included.
        batch_size: usize,
        /// The decode steps of this job.
        steps: usize,
    },
    /// A comparison is finished.
    Compared {
        /// What was found out.
        compared: Compared,
        /// Time from leaving the queue to the end.
        inference: Duration,
    },
    /// The job failed.
    Failed(Error),
}

/// The caller's end of an accepted job. Dropping it cancels the job.
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

/// Capacity limit of an event channel. No model has nearly as many positions.
const MAX_EVENTS: usize = 1 << 16;

/// A job in the queue, and later in the model.
#[derive(Debug)]
pub(super) struct ScheduledJob {
    pub(super) id: JobId,
    /// Holds the encoded image once the vision tower ran, so that a restart does not run it again.
    pub(super) image: ImageInput,
    prompt: Vec<u32>,
    task: Work,
    events: mpsc::Sender<JobEvent>,
    /// When it entered the queue, or left it if `started`.
    since: Instant,
    started: bool,
    /// When the decoder first received it.
    decoding_since: Option<Instant>,
    /// The tokens that the caller has received.
    sent: Vec<u32>,
    /// How many of them have been written again since the last restart.
    repeated: usize,
    batch_size: usize,
    steps: usize,
    pub(super) trace: JobTrace,
    /// Whether it must be the only job in the batch.
    pub(super) alone: bool,
    /// How often the device ran out of memory for a batch with this job.
    pub(super) out_of_memory: usize,
}

impl ScheduledJob {
    /// A job and the caller's end of it.
    pub(super) fn new(id: JobId, request: JobRequest) -> Result<(Self, Submission)> {
        let JobRequest { image, prompt, mut task } = request;
        task.validate()?;
        if let Some(Task::Write(params)) = task.task_mut()
            && params.do_sample
            && params.seed.is_none()
        {
            // Drawn here and not by the engine, so that a restart repeats the tokens already sent.
            params.seed = Some(fresh_seed());
        }
        // Large enough for every event of the job, so that the worker never waits for a reader.
        let (sender, events) = mpsc::channel(task.max_new_tokens().min(MAX_EVENTS) + 4);
        let job = Self {
            id,
            image,
            prompt,
            task,
            events: sender,
            since: Instant::now(),
            started: false,
            decoding_since: None,
            sent: Vec::new(),
            repeated: 0,
            batch_size: 0,
            steps: 0,
            trace: JobTrace::queued(),
            alone: false,
            out_of_memory: 0,
        };
        Ok((job, Submission { events }))
    }

    /// Rows that it needs in the decoding batch.
    pub(super) fn rows(&self) -> usize {
        self.task.rows()
    }

    /// Whether its caller has left.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// The engine's view of the job, for its first start or a restart.
    pub(super) fn start(&mut self, image: ImageInput) -> Job {
        self.repeated = 0;
        self.decoding_since.get_or_insert_with(Instant::now);
        self.trace.enter_decoder(self.task.rows());
        let (prompt, task) = (self.prompt.clone(), self.task.clone());
        Job { id: self.id, image, prompt, task, written: self.sent.clone() }
    }

    /// Tells the caller that the job left the queue and returns the time that it waited; `None` if
    /// the caller knows already.
    pub(super) fn announce_start(&mut self, now: Instant) -> Option<Duration> {
        if self.started {
            return None;
        }
        self.started = true;
        self.trace.leave_stage();
        let queued = now.saturating_duration_since(self.since);
        self.since = now;
        self.send(JobEvent::Started { queued });
        Some(queued)
    }

    /// Time since the decoder first received it.
    pub(super) fn decoding_time(&self, now: Instant) -> Duration {
        self.decoding_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Stores the output of the vision tower and sends it to the caller.
    pub(super) fn set_encoded(&mut self, image: &Arc<EncodedImage>) {
        self.image = ImageInput::Encoded(Arc::clone(image));
        self.send(JobEvent::Encoded(Arc::clone(image)));
    }

    /// Records a decode step with this many jobs and rows.
    pub(super) fn record_step(&mut self, jobs: usize, rows: usize) {
        self.batch_size = self.batch_size.max(jobs);
        self.steps += 1;
        self.trace.step(rows);
    }

    /// Sends a token, unless it was sent before a restart.
    ///
    /// # Errors
    /// The token differs from the one that was sent before the restart. The caller would read a
    /// mixture of two captions.
    pub(super) fn send_token(&mut self, token: u32) -> Result<()> {
        match self.sent.get(self.repeated) {
            Some(&before) if before != token => {
                return Err(Error::internal(format!(
                    "a restarted job wrote token {token} where it had written {before}"
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

    /// Ends the job with its result.
    pub(super) fn finish(mut self, sequences: Vec<Sequence>, now: Instant) {
        // The stage's span ends first: the request may end as soon as the caller has the result.
        self.trace.leave_stage();
        let inference = now.saturating_duration_since(self.since);
        let (batch_size, steps) = (self.batch_size, self.steps);
        self.send(JobEvent::Done { sequences, inference, batch_size, steps });
    }

    /// Ends a comparison with its result.
    pub(super) fn finish_comparison(mut self, compared: Compared, now: Instant) {
        self.trace.leave_stage();
        let inference = now.saturating_duration_since(self.since);
        self.send(JobEvent::Compared { compared, inference });
    }

    /// Ends the job with an error.
    pub(super) fn fail(mut self, error: Error) {
        self.trace.leave_stage();
        self.send(JobEvent::Failed(error));
    }

    /// The channel has capacity for all events of a job, so sending fails only if the caller left.
    fn send(&self, event: JobEvent) {
        let _ = self.events.try_send(event);
    }
}

/// The spans of a job in its request's trace. Without a trace collector they cost one check of a
/// flag.
#[derive(Debug)]
pub(super) struct JobTrace {
    request: Span,
    /// The stage that the job is in.
    stage: Span,
}

impl JobTrace {
    /// A job enters the queue on behalf of the current span.
    fn queued() -> Self {
        let request = Span::current();
        let stage = tracing::info_span!(target: "trace", parent: &request, "queue");
        Self { request, stage }
    }

    /// Ends the span of the present stage. The span of the next stage must not begin before that.
    fn leave_stage(&mut self) {
        self.stage = Span::none();
    }

    /// The vision tower begins to encode its image.
    pub(super) fn enter_vision(&mut self) {
        self.leave_stage();
        self.stage = tracing::info_span!(target: "trace", parent: &self.request, "vision");
    }

    /// The decoder begins to write `rows` captions or beams at once.
    fn enter_decoder(&mut self, rows: usize) {
        self.leave_stage();
        self.stage = tracing::info_span!(target: "trace", parent: &self.request, "decoder", rows);
    }

    /// One decode step, in a batch of this many rows.
    fn step(&self, batch: usize) {
        tracing::event!(target: "trace", parent: &self.stage, Level::INFO, batch, "step");
    }
}
