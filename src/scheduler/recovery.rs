//! What the worker does when the engine fails: the jobs that were in it are tried again, so that
//! only the one at fault fails.
//!
//! - An error or a panic while one job is started is that job's.
//! - A step that fails or panics may be anybody's fault: its jobs are started anew, one by one. The
//!   one that fails alone is the guilty one.
//! - Want of memory is nobody's fault: the batch is halved, and jobs for which that was not enough
//!   are tried one by one. The smaller size is kept from then on.
//!
//! A job fails at most once in company, once in half of it and once alone, so whatever the engine
//! does the work is bounded; and an engine that does nothing but fail is given pauses.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::job::ScheduledJob;
use super::worker::Worker;
use cutline_error::{Error, ErrorKind, Result};

/// How a call of the engine ended when it did not end well.
pub(super) enum Failure {
    Error(Error),
    /// The engine's state is unknown.
    Panic(Error),
}

/// A panic in the arithmetic is an error of the jobs in it, not the end of the server.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Failure::Error),
        Err(payload) => {
            let said = payload
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            Err(Failure::Panic(Error::internal(format!("the model panicked: {said}"))))
        }
    }
}

/// Pauses for an engine that fails again and again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Since the last success.
    failures: u32,
}

/// Failures in a row that are only accidents.
const PATIENCE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Backoff {
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// How long to wait before the next try.
    pub(super) fn pause(&self) -> Option<Duration> {
        let doublings = self.failures.checked_sub(PATIENCE + 1)?;
        Some(FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE))
    }
}

impl Worker<'_> {
    /// A real forward succeeded.
    pub(super) fn healthy(&mut self) {
        self.backoff.succeeded();
        let mut state = self.shared.lock();
        if state.degraded {
            state.degraded = false;
            tracing::info!("the model works again");
        }
    }

    /// A job could not be encoded or started; it is not in the engine.
    pub(super) fn failed_to_start(&mut self, entry: ScheduledJob, failure: Failure) {
        match failure {
            Failure::Error(error) if is_memory(&error) && !self.running.is_empty() => {
                // It waits until there are fewer beside it.
                self.out_of_memory(self.rows());
                self.shared.metrics.retried(1);
                self.resuming.push_front(entry);
            }
            Failure::Error(error) => {
                if is_memory(&error) {
                    self.shared.lock().out_of_memory += 1;
                }
                self.give_up(entry, error);
            }
            Failure::Panic(error) => {
                self.give_up(entry, error);
                // Who is at fault is known: the others may go on together.
                self.evacuate(|_| {});
            }
        }
    }

    /// The vision tower had no memory for so many images at once.
    pub(super) fn tower_out_of_memory(&mut self, images: usize) {
        let limit = (images / 2).max(1);
        self.vision_limit = Some(limit);
        let mut state = self.shared.lock();
        state.out_of_memory += 1;
        state.vision_limit = Some(limit);
        drop(state);
        tracing::warn!(
            limit,
            "the device is out of memory; fewer images are encoded together from now on"
        );
    }

    /// Several images could not be encoded together; none of them is in the engine.
    pub(super) fn encoding_failed(&mut self, failure: Failure, images: usize) {
        let (Failure::Error(error) | Failure::Panic(error)) = &failure;
        tracing::warn!(images, error = %error, "encoding images together failed; they are encoded one by one");
        if matches!(failure, Failure::Panic(_)) {
            // Those in the batch have nothing to do with it: they may go on together.
            self.evacuate(|_| {});
        }
    }

    /// A step failed as a whole.
    pub(super) fn failed_step(&mut self, failure: Failure) {
        let (Failure::Error(error) | Failure::Panic(error)) = failure;
        let (jobs, rows) = (self.running.len(), self.rows());
        if jobs == 0 {
            // All of them had ended when it failed.
            self.record(&error);
            self.rebuild();
        } else if jobs == 1 {
            if is_memory(&error) {
                self.shared.lock().out_of_memory += 1;
            }
            if let Some(entry) = self.running.pop() {
                self.give_up(entry, error);
            }
            self.rebuild();
        } else if is_memory(&error) {
            self.out_of_memory(rows / 2);
            self.evacuate(|entry| {
                entry.squeezed += 1;
                entry.alone |= entry.squeezed > 1;
            });
        } else {
            self.record(&error);
            tracing::warn!(jobs, error = %error, "a step of the model failed; its jobs are tried one by one");
            self.evacuate(|entry| entry.alone = true);
        }
    }

    /// Puts the engine back to its weights.
    fn rebuild(&mut self) {
        self.engine.reset();
        self.shared.metrics.rebuilt();
    }

    /// Takes all jobs out of the engine, in their order, to be started anew.
    fn evacuate(&mut self, mut mark: impl FnMut(&mut ScheduledJob)) {
        self.rebuild();
        self.shared.metrics.retried(self.running.len());
        for mut entry in self.running.drain(..).rev() {
            mark(&mut entry);
            self.resuming.push_front(entry);
        }
    }

    /// From now on there are at most so many rows in the engine.
    fn out_of_memory(&mut self, rows: usize) {
        let limit = rows.clamp(1, self.limit());
        self.memory_limit = Some(limit);
        let mut state = self.shared.lock();
        state.out_of_memory += 1;
        state.memory_limit = Some(limit);
        drop(state);
        tracing::warn!(
            limit,
            "the device is out of memory; fewer captions are written together from now on"
        );
    }

    /// The end of a job that is at fault, or cannot be helped; it is not in the engine any more.
    pub(super) fn give_up(&mut self, entry: ScheduledJob, error: Error) {
        if is_defect(&error) {
            self.record(&error);
            tracing::error!(error = %error, "the model failed for an image");
        }
        self.shared.lock().in_flight -= 1;
        entry.failed(error);
    }

    fn record(&mut self, error: &Error) {
        self.backoff.failed();
        self.shared.lock().record(error);
    }
}

fn is_memory(error: &Error) -> bool {
    error.kind() == ErrorKind::OutOfMemory
}

/// What a caller asked for may be impossible; that says nothing of the model.
fn is_defect(error: &Error) -> bool {
    error.kind() != ErrorKind::InvalidParameter
}
