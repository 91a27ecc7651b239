//! The one thread that owns the model. Between two decoding steps it lets go of jobs that nobody
//! waits for and takes new ones in, so a batch forms by itself while the model is busy, and a job
//! that comes alone never waits for company.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::handle::{SchedulerOptions, VisionOrder};
use super::job::ScheduledJob;
use super::recovery::{Backoff, guarded};
use super::shared::SharedState;
use crate::engine::{Engine, Event, JobId, Sequence};
use crate::metrics::Stage;
use cutline_error::Error;

pub(super) struct Worker<'a> {
    pub(super) engine: Box<dyn Engine>,
    pub(super) shared: &'a SharedState,
    /// The jobs in the engine.
    pub(super) running: Vec<ScheduledJob>,
    /// Jobs that a failure threw out of the engine; they come before those in the queue.
    pub(super) resuming: VecDeque<ScheduledJob>,
    pub(super) backoff: Backoff,
    max_rows: usize,
    /// Fewer rows than those, once the device had no memory for more.
    pub(super) memory_limit: Option<usize>,
    /// Fewer images at once in the vision tower, for the same reason.
    pub(super) vision_limit: Option<usize>,
    pub(super) vision_order: VisionOrder,
    pub(super) vision_batch: usize,
}

/// Runs until no work is accepted any more and all that was accepted is done.
pub(super) fn run(engine: Box<dyn Engine>, shared: &SharedState, options: SchedulerOptions) {
    let mut worker = Worker {
        engine,
        shared,
        running: Vec::new(),
        resuming: VecDeque::new(),
        backoff: Backoff::default(),
        max_rows: options.max_batch_size.max(1),
        memory_limit: None,
        vision_limit: None,
        vision_order: options.vision_order,
        vision_batch: options.vision_batch.max(1),
    };
    let _guard = OnExit(shared);
    let mut events = Vec::new();
    while worker.wait_for_work() {
        let begin = Instant::now();
        worker.drop_the_departed(begin);
        worker.admit();
        worker.step(&mut events);
        shared.lock().throughput.worked(begin, Instant::now());
    }
}

/// Whatever ends the thread, nobody waits for it in vain afterwards.
struct OnExit<'a>(&'a SharedState);

impl Drop for OnExit<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if !state.closed || std::thread::panicking() {
            state.failed = true;
        }
        state.in_flight = 0;
        // Dropping the entries closes their channels.
        state.queue.drain().for_each(drop);
    }
}

impl Worker<'_> {
    /// Blocks until there is something to do; false when there never will be.
    fn wait_for_work(&self) -> bool {
        let mut state = self.shared.lock();
        if let Some(pause) = self.backoff.pause() {
            let end = Instant::now() + pause;
            // A server that stops has no time for this, and a bounded number of jobs left.
            while !state.closed
                && let Some(left) = time_until(end)
            {
                state = self.shared.wait(state, Some(left));
            }
        }
        if !self.running.is_empty() || !self.resuming.is_empty() {
            return true;
        }
        while state.queue.len() == 0 {
            // Who has a place was promised that it will be served.
            if state.closed && state.queue.reserved() == 0 {
                return false;
            }
            state = self.shared.wait(state, None);
        }
        true
    }

    fn drop_the_departed(&mut self, now: Instant) {
        self.shared.lock().queue.prune(|entry| entry.is_over(now));
        let in_flight = self.running.len() + self.resuming.len();
        self.resuming.retain(|entry| !entry.is_over(now));
        let engine = &mut self.engine;
        self.running.retain(|entry| {
            let over = entry.is_over(now);
            if over {
                engine.cancel(entry.id);
            }
            !over
        });
        let left = in_flight - self.running.len() - self.resuming.len();
        if left > 0 {
            self.shared.lock().in_flight -= left;
        }
    }

    fn step(&mut self, events: &mut Vec<Event>) {
        if self.running.is_empty() {
            return;
        }
        let (jobs, rows) = (self.running.len(), self.rows());
        for entry in &mut self.running {
            entry.in_batch_of(jobs);
            entry.trace.step(rows);
        }
        events.clear();
        let result = guarded(|| self.engine.step(events));
        self.shared.metrics.step(rows);
        let failures = self.backoff.failures();
        for event in events.drain(..) {
            self.deliver(event);
        }
        match result {
            Ok(()) if self.backoff.failures() == failures => self.healthy(),
            Ok(()) => {}
            Err(failure) => self.failed_step(failure),
        }
    }

    fn deliver(&mut self, event: Event) {
        match event {
            Event::Token { job, token } => {
                let Some(entry) = self.running.iter_mut().find(|entry| entry.id == job) else {
                    return;
                };
                if let Err(error) = entry.token(token) {
                    self.engine.cancel(job);
                    self.fail(job, error);
                }
            }
            Event::Done { job, sequences } => self.done(job, sequences),
            Event::Failed { job, error } => self.fail(job, error),
        }
    }

    fn done(&mut self, job: JobId, sequences: Vec<Sequence>) {
        let Some(entry) = self.take(job) else { return };
        let now = Instant::now();
        {
            let mut state = self.shared.lock();
            state.in_flight -= 1;
            state.finished += 1;
            state.throughput.finished(now);
        }
        self.shared.metrics.stage(Stage::Decoder, entry.decoding(now));
        entry.done(sequences, now);
    }

    fn fail(&mut self, job: JobId, error: Error) {
        if let Some(entry) = self.take(job) {
            self.give_up(entry, error);
        }
    }

    fn take(&mut self, job: JobId) -> Option<ScheduledJob> {
        let place = self.running.iter().position(|entry| entry.id == job)?;
        Some(self.running.remove(place))
    }

    /// Rows in the engine.
    pub(super) fn rows(&self) -> usize {
        self.running.iter().map(ScheduledJob::rows).sum()
    }

    /// Rows that may be in the engine.
    pub(super) fn limit(&self) -> usize {
        self.memory_limit.map_or(self.max_rows, |limit| limit.min(self.max_rows))
    }
}

fn time_until(end: Instant) -> Option<Duration> {
    end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}
