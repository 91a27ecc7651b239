//! What the worker does when the engine fails. Jobs that were in the engine are restarted, so that
//! only the job at fault fails.
//!
//! - An error or a panic while one job starts is that job's fault.
//! - If a decode step fails or panics, any of its jobs may be at fault. They restart one by one, and
//!   the job that fails alone is at fault.
//! - Running out of memory is nobody's fault. The batch is halved, jobs that still do not fit are
//!   tried one by one, and the smaller size is kept as the limit.
//! - If the device is lost to this process, no try can succeed. The worker gives up, and only a restart
//!   of the program helps.
//!
//! A job fails at most once in a full batch, once in half of it and once alone. The work is bounded
//! whatever the engine does. After several failures in a row the worker pauses before the next try.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::job::ScheduledJob;
use super::worker::Worker;
use cutline_error::{Error, ErrorKind, Result, panic_message};

/// How a call of the engine failed.
pub(super) enum Failure {
    Error(Error),
    /// The engine panicked, and its state is unknown.
    Panic(Error),
}

impl Failure {
    pub(super) fn error(&self) -> &Error {
        let (Self::Error(error) | Self::Panic(error)) = self;
        error
    }

    fn into_error(self) -> Error {
        let (Self::Error(error) | Self::Panic(error)) = self;
        error
    }
}

/// Runs `work` and turns a panic into a failure of the jobs in it, so that the server survives.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Failure::Error),
        Err(payload) => {
            let message = panic_message(&*payload).unwrap_or_default();
            Err(Failure::Panic(Error::internal(format!("the model panicked: {message}"))))
        }
    }
}

/// Pauses between tries while the engine keeps failing.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Failures since the last success.
    failures: u32,
}

/// Failures in a row that cause no pause.
const FREE_FAILURES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Backoff {
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    fn record_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    fn record_success(&mut self) {
        self.failures = 0;
    }

    /// The pause before the next try; it doubles with each failure.
    pub(super) fn pause(&self) -> Option<Duration> {
        let doublings = self.failures.checked_sub(FREE_FAILURES + 1)?;
        Some(FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE))
    }
}

impl Worker<'_> {
    /// A decode step succeeded.
    pub(super) fn record_success(&mut self) {
        self.backoff.record_success();
        let mut state = self.shared.lock();
        if state.degraded {
            state.degraded = false;
            tracing::info!("the model works again");
        }
    }

    /// A job could not be encoded or started. It is not in the engine.
    pub(super) fn start_failed(&mut self, job: ScheduledJob, failure: Failure) {
        match failure {
            Failure::Error(error) if is_loss(&error) => self.give_up(&error, [job]),
            Failure::Error(error) if is_memory(&error) && !self.running.is_empty() => {
                // It waits until the batch is smaller.
                self.out_of_memory(self.rows());
                self.shared.metrics.retried(1);
                self.resuming.push_front(job);
            }
            Failure::Error(error) => {
                if is_memory(&error) {
                    self.shared.lock().out_of_memory += 1;
                }
                self.fail_job(job, error);
            }
            Failure::Panic(error) => {
                // The job at fault is known, so the others may restart together.
                self.restart_all(|_| {});
                self.fail_job(job, error);
            }
        }
    }

    /// The vision tower ran out of memory for this many images at once.
    pub(super) fn vision_out_of_memory(&mut self, images: usize) {
        let limit = (images / 2).max(1);
        self.vision_limit = Some(limit);
        let mut state = self.shared.lock();
        state.out_of_memory += 1;
        state.vision_limit = Some(limit);
        drop(state);
        tracing::warn!(limit, "out of memory on the device; encoding fewer images together");
    }

    /// Several images could not be encoded together. None of their jobs is in the engine.
    pub(super) fn group_encoding_failed(&mut self, failure: Failure, images: usize) {
        tracing::warn!(
            images,
            error = %failure.error(),
            "encoding images together failed; encoding them one by one"
        );
        if matches!(failure, Failure::Panic(_)) {
            // The jobs in the batch are not at fault, so they may restart together.
            self.restart_all(|_| {});
        }
    }

    /// A decode step failed as a whole.
    pub(super) fn step_failed(&mut self, failure: Failure) {
        let error = failure.into_error();
        let (jobs, rows) = (self.running.len(), self.rows());
        if is_loss(&error) {
            self.give_up(&error, []);
        } else if jobs == 0 {
            // All jobs had ended when the step failed.
            self.record_failure(&error);
            self.reset_engine();
        } else if jobs == 1 {
            if is_memory(&error) {
                self.shared.lock().out_of_memory += 1;
            }
            // Before the job ends: whoever sees its error may rely on what is counted.
            self.reset_engine();
            if let Some(job) = self.running.pop() {
                self.fail_job(job, error);
            }
        } else if is_memory(&error) {
            self.out_of_memory(rows / 2);
            self.restart_all(|job| {
                job.out_of_memory += 1;
                job.alone |= job.out_of_memory > 1;
            });
        } else {
            self.record_failure(&error);
            tracing::warn!(jobs, error = %error, "a decode step failed; trying its jobs one by one");
            self.restart_all(|job| job.alone = true);
        }
    }

    /// The device is lost. Fails `jobs` and those in the engine, of which any may have caused it; the
    /// error is not one that invites a retry on another server. The waiting jobs did not, and end when
    /// the loop does.
    pub(super) fn give_up(&mut self, error: &Error, jobs: impl IntoIterator<Item = ScheduledJob>) {
        if !self.device_lost {
            tracing::error!(error = %error, "the model has stopped; only a restart helps");
        }
        self.device_lost = true;
        self.record_failure(error);
        // Also while the scheduler is closing: slots that are still reserved must not be filled.
        self.shared.lock().failed = true;
        for job in jobs.into_iter().chain(self.running.drain(..)) {
            job.fail(error.clone());
        }
    }

    /// Resets the engine to its weights.
    fn reset_engine(&mut self) {
        self.engine.reset();
        self.shared.metrics.rebuilt();
    }

    /// Takes all jobs out of the engine, in their order, to restart them.
    fn restart_all(&mut self, mut mark: impl FnMut(&mut ScheduledJob)) {
        self.reset_engine();
        self.shared.metrics.retried(self.running.len());
        for mut job in self.running.drain(..).rev() {
            mark(&mut job);
            self.resuming.push_front(job);
        }
    }

    /// Limits the rows in the engine from now on.
    fn out_of_memory(&mut self, rows: usize) {
        let limit = rows.clamp(1, self.row_limit());
        self.memory_limit = Some(limit);
        let mut state = self.shared.lock();
        state.out_of_memory += 1;
        state.memory_limit = Some(limit);
        drop(state);
        tracing::warn!(limit, "out of memory on the device; decoding fewer captions together");
    }

    /// Ends a job that is at fault or cannot be helped. It is not in the engine any more.
    pub(super) fn fail_job(&mut self, job: ScheduledJob, error: Error) {
        if is_loss(&error) {
            self.give_up(&error, [job]);
            return;
        }
        if is_defect(&error) {
            self.record_failure(&error);
            tracing::error!(error = %error, "the model failed for an image");
        }
        self.shared.lock().in_flight -= 1;
        job.fail(error);
    }

    fn record_failure(&mut self, error: &Error) {
        self.backoff.record_failure();
        self.shared.lock().record_failure(error);
    }
}

/// Whether the device refuses all further work.
pub(super) fn is_loss(error: &Error) -> bool {
    error.kind() == ErrorKind::DeviceLost
}

fn is_memory(error: &Error) -> bool {
    error.kind() == ErrorKind::OutOfMemory
}

/// A parameter that the model cannot serve is no defect of the model.
fn is_defect(error: &Error) -> bool {
    error.kind() != ErrorKind::InvalidParameter
}
