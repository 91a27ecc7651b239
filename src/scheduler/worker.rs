//! The loop of the model thread. Jobs join and leave the batch between two decode steps, so a batch
//! forms by itself while the model is busy, and a single job never waits for others.

use std::collections::VecDeque;
use std::time::Instant;

use super::handle::{SchedulerOptions, VisionOrder};
use super::job::ScheduledJob;
use super::recovery::{Backoff, guarded};
use super::shared::SharedState;
use crate::engine::{Engine, Event, JobId};
use crate::metrics::Stage;
use cutline_error::Error;

pub(super) struct Worker<'a> {
    pub(super) engine: Box<dyn Engine>,
    pub(super) shared: &'a SharedState,
    /// The jobs in the engine.
    pub(super) running: Vec<ScheduledJob>,
    /// Jobs that a failure removed from the engine. They restart before the queue is served.
    pub(super) resuming: VecDeque<ScheduledJob>,
    pub(super) backoff: Backoff,
    /// Whether the device refuses all further work. The loop then ends.
    pub(super) device_lost: bool,
    max_rows: usize,
    /// A smaller limit than `max_rows`, set after the device ran out of memory.
    pub(super) memory_limit: Option<usize>,
    /// A smaller limit on images per call of the vision tower, set in the same way.
    pub(super) vision_limit: Option<usize>,
    pub(super) vision_order: VisionOrder,
    /// Images that the vision tower encodes faster together.
    pub(super) vision_batch: usize,
}

/// Runs until the scheduler is closed and all accepted jobs are done, or until the device is lost.
pub(super) fn run(engine: Box<dyn Engine>, shared: &SharedState, options: &SchedulerOptions) {
    let mut worker = Worker {
        engine,
        shared,
        running: Vec::new(),
        resuming: VecDeque::new(),
        backoff: Backoff::default(),
        device_lost: false,
        max_rows: options.max_batch_size.max(1),
        memory_limit: None,
        vision_limit: None,
        vision_order: options.vision_order,
        vision_batch: options.vision_batch.max(1),
    };
    let _guard = OnExit(shared);
    let mut events = Vec::new();
    while !worker.device_lost && worker.wait_for_work() {
        let begin = Instant::now();
        worker.drop_abandoned();
        worker.admit();
        worker.step(&mut events);
        shared.lock().throughput.record_work(begin, Instant::now());
    }
}

/// Fails all waiting jobs when the thread ends, whatever the reason.
struct OnExit<'a>(&'a SharedState);

impl Drop for OnExit<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if !state.closed || std::thread::panicking() {
            state.failed = true;
        }
        state.in_flight = 0;
        // Dropping a job closes its channel.
        state.queue.drain().for_each(drop);
        if state.failed {
            let _ = self.0.failure.set(());
        }
    }
}

impl Worker<'_> {
    /// Blocks until there is a job; false once there will never be another.
    fn wait_for_work(&self) -> bool {
        let mut state = self.shared.lock();
        if let Some(pause) = self.backoff.pause() {
            let end = Instant::now() + pause;
            // No pauses while closing: the server is waiting to stop, and few jobs are left.
            while !state.closed && !self.shared.wake.wait_until(&mut state, end).timed_out() {}
        }
        if !self.running.is_empty() || !self.resuming.is_empty() {
            return true;
        }
        while state.queue.len() == 0 {
            // A reserved slot is a promise to serve its job.
            if state.closed && state.queue.reserved() == 0 {
                return false;
            }
            self.shared.wake.wait(&mut state);
        }
        true
    }

    /// Drops the jobs whose callers have left.
    fn drop_abandoned(&mut self) {
        self.shared.lock().queue.remove_if(ScheduledJob::is_abandoned);
        let before = self.running.len() + self.resuming.len();
        self.resuming.retain(|job| !job.is_abandoned());
        let engine = &mut self.engine;
        self.running.retain(|job| {
            let abandoned = job.is_abandoned();
            if abandoned {
                engine.cancel(job.id);
            }
            !abandoned
        });
        let dropped = before - self.running.len() - self.resuming.len();
        if dropped > 0 {
            self.shared.lock().in_flight -= dropped;
        }
    }

    /// Runs one decode step of the batch, if there is one.
    fn step(&mut self, events: &mut Vec<Event>) {
        if self.running.is_empty() {
            return;
        }
        let (jobs, rows) = (self.running.len(), self.rows());
        for job in &mut self.running {
            job.record_step(jobs, rows);
        }
        events.clear();
        let result = guarded(|| self.engine.step(events));
        self.shared.metrics.step(rows);
        let failures = self.backoff.failures();
        for event in events.drain(..) {
            self.deliver(event);
        }
        match result {
            Ok(()) if self.backoff.failures() == failures => self.record_success(),
            Ok(()) => {}
            Err(failure) => self.step_failed(failure),
        }
    }

    fn deliver(&mut self, event: Event) {
        match event {
            Event::Token { job: id, token } => {
                let Some(job) = self.running.iter_mut().find(|job| job.id == id) else { return };
                if let Err(error) = job.send_token(token) {
                    self.engine.cancel(id);
                    self.fail(id, error);
                }
            }
            Event::Done { job, sequences } => {
                self.finish(job, |job, now| job.finish(sequences, now));
            }
            Event::Compared { job, compared } => {
                self.finish(job, |job, now| job.finish_comparison(compared, now));
            }
            Event::Failed { job, error } => self.fail(job, error),
        }
    }

    fn finish(&mut self, id: JobId, tell: impl FnOnce(ScheduledJob, Instant)) {
        let Some(job) = self.take(id) else { return };
        let now = Instant::now();
        {
            let mut state = self.shared.lock();
            state.in_flight -= 1;
            state.finished += 1;
            state.throughput.record_finished(now);
        }
        self.shared.metrics.stage(Stage::Decoder, job.decoding_time(now));
        tell(job, now);
    }

    fn fail(&mut self, id: JobId, error: Error) {
        if let Some(job) = self.take(id) {
            self.fail_job(job, error);
        }
    }

    fn take(&mut self, id: JobId) -> Option<ScheduledJob> {
        let index = self.running.iter().position(|job| job.id == id)?;
        Some(self.running.remove(index))
    }

    /// Rows in the engine.
    pub(super) fn rows(&self) -> usize {
        self.running.iter().map(ScheduledJob::rows).sum()
    }

    /// The limit on rows in the engine.
    pub(super) fn row_limit(&self) -> usize {
        self.memory_limit.map_or(self.max_rows, |limit| limit.min(self.max_rows))
    }
}
