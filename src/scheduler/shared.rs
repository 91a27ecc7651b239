//! The state that handles and worker share, and the status that is reported of it.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::SetOnce;

use super::job::ScheduledJob;
use super::queue::Queue;
use super::throughput::Throughput;
use crate::metrics::Metrics;
use cutline_error::Error;

/// The state of queue and model at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerStatus {
    /// Jobs that wait.
    pub queue_depth: usize,
    /// Reserved slots without a job yet; not counted in `queue_depth`.
    pub reserved: usize,
    /// Slots of the queue. Waiting jobs and reserved slots together never exceed it.
    pub queue_capacity: usize,
    /// Jobs that have left the queue and are not finished.
    pub in_flight: usize,
    /// Rows (captions or beams) that may be decoded together.
    pub max_batch_size: usize,
    /// A smaller limit on rows, set after the device ran out of memory.
    pub memory_limit: Option<usize>,
    /// A smaller limit on images per call of the vision tower, set in the same way.
    pub vision_limit: Option<usize>,
    /// Images finished per second over the last minute.
    pub images_per_second: f64,
    /// Estimated time in the queue of an image that arrives now. Zero if it would not wait.
    pub estimated_wait: Duration,
    /// Images captioned so far.
    pub finished: u64,
    /// Images encoded by the vision tower so far.
    pub encoded: u64,
    /// Failures of the model so far, of one job or of a whole step.
    pub failures: u64,
    /// Times that the device ran out of memory.
    pub out_of_memory: u64,
    /// Whether new jobs are accepted.
    pub accepting: bool,
    /// Whether the last run of the model failed.
    pub degraded: bool,
    /// Whether the model thread has ended for good: only a restart of the program helps.
    pub failed: bool,
    /// The last failure of the model, for operators.
    pub last_error: Option<String>,
}

impl SchedulerStatus {
    /// Whether all slots of the queue are taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.queue_depth + self.reserved >= self.queue_capacity
    }
}

/// The state that handles and worker share.
#[derive(Debug)]
pub(super) struct SharedState {
    state: Mutex<SchedulerState>,
    pub(super) wake: Condvar,
    /// Set once the model thread has ended for good.
    pub(super) failure: SetOnce<()>,
    pub(super) metrics: Metrics,
}

/// The part behind the lock.
#[derive(Debug)]
pub(super) struct SchedulerState {
    pub(super) queue: Queue<ScheduledJob>,
    /// No slot can be reserved any more; accepted jobs are finished.
    pub(super) closed: bool,
    pub(super) throughput: Throughput,
    pub(super) in_flight: usize,
    max_rows: usize,
    pub(super) memory_limit: Option<usize>,
    pub(super) vision_limit: Option<usize>,
    pub(super) finished: u64,
    pub(super) encoded: u64,
    failures: u64,
    pub(super) out_of_memory: u64,
    pub(super) degraded: bool,
    pub(super) failed: bool,
    last_error: Option<String>,
}

impl SharedState {
    pub(super) fn new(max_rows: usize, capacity: usize, metrics: Metrics) -> Self {
        let state = SchedulerState {
            queue: Queue::new(capacity),
            closed: false,
            throughput: Throughput::new(Instant::now()),
            in_flight: 0,
            max_rows,
            memory_limit: None,
            vision_limit: None,
            finished: 0,
            encoded: 0,
            failures: 0,
            out_of_memory: 0,
            degraded: false,
            failed: false,
            last_error: None,
        };
        let failure = SetOnce::new();
        Self { state: Mutex::new(state), wake: Condvar::new(), failure, metrics }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SchedulerState> {
        self.state.lock()
    }
}

impl SchedulerState {
    /// Records a failure of the model.
    pub(super) fn record_failure(&mut self, error: &Error) {
        self.failures += 1;
        self.degraded = true;
        self.last_error = Some(error.to_string());
    }

    /// Estimated time until this many jobs have left the queue.
    pub(super) fn time_for(&self, images: usize, now: Instant) -> Option<Duration> {
        self.throughput.time_for(images, now)
    }

    pub(super) fn status(&self, now: Instant) -> SchedulerStatus {
        let waiting = self.queue.occupied();
        let rows = self.memory_limit.unwrap_or(self.max_rows);
        // All waiting jobs come first, and with a full batch one of the running jobs has to finish.
        let ahead = waiting + usize::from(self.in_flight >= rows);
        SchedulerStatus {
            queue_depth: self.queue.len(),
            reserved: self.queue.reserved(),
            queue_capacity: self.queue.capacity(),
            in_flight: self.in_flight,
            max_batch_size: self.max_rows,
            memory_limit: self.memory_limit,
            vision_limit: self.vision_limit,
            images_per_second: self.throughput.images_per_second(now),
            estimated_wait: self.time_for(ahead, now).unwrap_or_default(),
            finished: self.finished,
            encoded: self.encoded,
            failures: self.failures,
            out_of_memory: self.out_of_memory,
            accepting: !self.closed && !self.failed && waiting < self.queue.capacity(),
            degraded: self.degraded,
            failed: self.failed,
            last_error: self.last_error.clone(),
        }
    }
}
