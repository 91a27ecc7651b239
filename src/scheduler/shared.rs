//! What handle and worker share, and what is said of it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::job::ScheduledJob;
use super::queue::Queue;
use super::throughput::Throughput;
use crate::metrics::Metrics;
use cutline_error::Error;

/// How the queue and the model are doing.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerStatus {
    /// Jobs that wait.
    pub queue_depth: usize,
    /// Places of images that are on their way into the queue, not counted in `queue_depth`.
    pub reserved: usize,
    /// Places; jobs that wait and reserved places together are never more.
    pub queue_capacity: usize,
    /// Jobs that have left the queue and are not finished.
    pub in_flight: usize,
    /// Rows (captions or beams) that may be decoded together.
    pub max_batch_size: usize,
    /// Fewer rows than that, learned when the device had no memory for more.
    pub memory_limit: Option<usize>,
    /// Fewer images at once in the vision tower than it takes, learned in the same way.
    pub vision_limit: Option<usize>,
    /// Images finished per second over the last minute.
    pub images_per_second: f64,
    /// How long an image that came now would wait for its turn, at the present speed. Zero when
    /// there is room.
    pub estimated_wait: Duration,
    /// Images that were captioned.
    pub finished: u64,
    /// Images that the vision tower encoded.
    pub encoded: u64,
    /// Times that the model failed, in one job or in all of them.
    pub failures: u64,
    /// Times that the device had no memory for what it was to do.
    pub out_of_memory: u64,
    /// Whether new jobs are accepted.
    pub accepting: bool,
    /// Whether the last run of the model failed.
    pub degraded: bool,
    /// Whether the model's thread is gone.
    pub failed: bool,
    /// The last failure of the model, for operators.
    pub last_error: Option<String>,
}

impl SchedulerStatus {
    /// Whether the queue has no place left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.queue_depth + self.reserved >= self.queue_capacity
    }
}

/// What handle and worker share.
#[derive(Debug)]
pub(super) struct SharedState {
    state: Mutex<SchedulerState>,
    pub(super) wake: Condvar,
    pub(super) metrics: Metrics,
}

/// The part behind the lock.
#[derive(Debug)]
pub(super) struct SchedulerState {
    pub(super) queue: Queue<ScheduledJob>,
    /// No new places; what is accepted is finished.
    pub(super) closed: bool,
    pub(super) throughput: Throughput,
    pub(super) in_flight: usize,
    pub(super) max_rows: usize,
    pub(super) memory_limit: Option<usize>,
    pub(super) vision_limit: Option<usize>,
    pub(super) finished: u64,
    pub(super) encoded: u64,
    pub(super) failures: u64,
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
        Self { state: Mutex::new(state), wake: Condvar::new(), metrics }
    }

    /// A poisoned lock means that a panic was caught elsewhere; the state itself is always whole,
    /// because no code that can panic runs while it is held.
    pub(super) fn lock(&self) -> MutexGuard<'_, SchedulerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there may be something new, or so long.
    pub(super) fn wait<'s>(
        &self,
        state: MutexGuard<'s, SchedulerState>,
        at_most: Option<Duration>,
    ) -> MutexGuard<'s, SchedulerState> {
        match at_most {
            None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(time) => {
                self.wake.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

impl SchedulerState {
    pub(super) fn record(&mut self, error: &Error) {
        self.failures += 1;
        self.degraded = true;
        self.last_error = Some(error.to_string());
    }

    /// How long it takes until so many of those in the queue have left it.
    pub(super) fn time_for(&self, images: usize, now: Instant) -> Option<Duration> {
        self.throughput.time_for(images, now)
    }

    pub(super) fn status(&self, now: Instant) -> SchedulerStatus {
        let waiting = self.queue.occupied();
        let rows = self.memory_limit.unwrap_or(self.max_rows);
        // Everybody before it, and one of those in the model, has to go first.
        let before = waiting + usize::from(self.in_flight >= rows);
        SchedulerStatus {
            queue_depth: self.queue.len(),
            reserved: self.queue.reserved(),
            queue_capacity: self.queue.capacity(),
            in_flight: self.in_flight,
            max_batch_size: self.max_rows,
            memory_limit: self.memory_limit,
            vision_limit: self.vision_limit,
            images_per_second: self.throughput.images_per_second(now),
            estimated_wait: self.time_for(before, now).unwrap_or_default(),
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
