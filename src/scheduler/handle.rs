//! The async face of the worker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::job::{JobRequest, ScheduledJob, Submission};
use super::queue::Priority;
use super::shared::{SchedulerState, SchedulerStatus, SharedState};
use super::worker;
use crate::engine::{Engine, JobId};
use crate::metrics::Metrics;
use cutline_error::{Error, ErrorKind, Result};

/// How the worker goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Rows (captions or beams) that are decoded together.
    pub max_batch_size: usize,
    /// Images that may wait.
    pub queue_capacity: usize,
    /// When new images are encoded.
    pub vision_order: VisionOrder,
    /// Images that the vision tower encodes faster together than one after another; 1 where batches
    /// gain nothing. See [`EngineInfo`](crate::engine::EngineInfo).
    pub vision_batch: usize,
}

/// When new images are encoded while others are decoded. ARCHITECTURE.md has the measurements that
/// chose the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VisionOrder {
    /// Before the next step as many as make a batch of two, or of half of those that wait if that
    /// is more: a few are soon done, and a crowd is decoded in large batches.
    #[default]
    ByBacklog,
    /// All that fit into the batch, before the next step.
    AllFirst,
    /// One between two steps.
    OneBetweenSteps,
}

/// Cloneable access to the model. When the last clone and the last [`QueueSlot`] are dropped, accepted
/// work is finished and the thread is joined.
#[derive(Debug, Clone)]
pub struct Handle {
    owner: Arc<ModelThread>,
}

#[derive(Debug)]
struct ModelThread {
    shared: Arc<SharedState>,
    next_id: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    /// Starts the thread that owns `engine`.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal): the system has no thread to give.
    pub fn spawn(engine: Box<dyn Engine>, options: SchedulerOptions) -> Result<Self> {
        Self::spawn_measured(engine, options, Metrics::new())
    }

    /// [`spawn`](Self::spawn), with what happens counted in `metrics`.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn spawn_measured(
        engine: Box<dyn Engine>,
        options: SchedulerOptions,
        metrics: Metrics,
    ) -> Result<Self> {
        let rows = options.max_batch_size.max(1);
        let shared = Arc::new(SharedState::new(rows, options.queue_capacity, metrics));
        let of_worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("model".to_owned())
            .spawn(move || worker::run(engine, &of_worker, options))
            .map_err(|e| Error::internal("cannot start the model's thread").with_source(e))?;
        let owner =
            ModelThread { shared, next_id: AtomicU64::new(0), thread: Mutex::new(Some(thread)) };
        Ok(Self { owner: Arc::new(owner) })
    }

    /// Takes `count` places in the queue at once, or none. They count against its capacity from
    /// here on, before there is an image to put into them, until their jobs have left the queue.
    ///
    /// # Errors
    /// [`QueueFull`](ErrorKind::QueueFull), which says when there will be room at the present
    /// speed; [`ShuttingDown`](ErrorKind::ShuttingDown); or [`Internal`](ErrorKind::Internal) when
    /// the model's thread is gone.
    pub fn reserve(&self, count: usize, priority: Priority) -> Result<Vec<QueueSlot>> {
        {
            let now = Instant::now();
            let mut state = self.owner.shared.lock();
            if state.closed {
                return Err(shutting_down());
            }
            if state.failed {
                return Err(thread_is_gone());
            }
            if state.queue.reserve(count).is_err() {
                state.queue.prune(|entry| entry.is_over(now));
                state
                    .queue
                    .reserve(count)
                    .map_err(|missing| queue_full(count, missing, &state, now))?;
            }
        }
        let place = |_| QueueSlot { owner: Arc::clone(&self.owner), priority, taken: true };
        Ok((0..count).map(place).collect())
    }

    /// How queue and model are doing.
    #[must_use]
    pub fn status(&self) -> SchedulerStatus {
        self.owner.shared.lock().status(Instant::now())
    }

    /// Accepts no more work; what was accepted, reserved places included, is finished.
    pub fn close(&self) {
        self.owner.close();
    }
}

/// A reserved place in the queue. Dropping it gives it back.
#[derive(Debug)]
pub struct QueueSlot {
    owner: Arc<ModelThread>,
    priority: Priority,
    /// Whether the place is still this one's to give back.
    taken: bool,
}

impl QueueSlot {
    /// Puts a job into the place.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter), or [`Internal`](ErrorKind::Internal) when
    /// the model's thread is gone.
    pub fn submit(mut self, work: JobRequest) -> Result<Submission> {
        let id = JobId(self.owner.next_id.fetch_add(1, Ordering::Relaxed));
        let (entry, submission) = ScheduledJob::new(id, work)?;
        let shared = &self.owner.shared;
        {
            let mut state = shared.lock();
            if state.failed {
                return Err(thread_is_gone());
            }
            state.queue.push(self.priority, entry.rows(), entry);
            self.taken = false;
        }
        shared.wake.notify_one();
        Ok(submission)
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        if self.taken {
            let shared = &self.owner.shared;
            shared.lock().queue.release();
            // A worker that is to end waits for the last place.
            shared.wake.notify_one();
        }
    }
}

impl ModelThread {
    fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl Drop for ModelThread {
    fn drop(&mut self) {
        self.close();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic in that thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

fn shutting_down() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the server is stopping; send the request to another one")
        .with_retry_after(Duration::from_secs(5))
}

fn thread_is_gone() -> Error {
    Error::internal("the model's thread has stopped")
}

/// Nobody is sent away for longer than this: the guess is too rough for it.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

fn queue_full(count: usize, missing: usize, state: &SchedulerState, now: Instant) -> Error {
    let capacity = state.queue.capacity();
    let detail = if count > capacity {
        format!(
            "{count} images are more than the {capacity} that may wait; nothing was queued, send \
             fewer at a time or raise QUEUE_CAPACITY"
        )
    } else {
        "too many images are waiting; nothing was queued, try again a little later".to_owned()
    };
    let wait = state.time_for(missing.min(capacity), now).unwrap_or(Duration::from_secs(1));
    Error::new(ErrorKind::QueueFull, detail).with_retry_after(wait.min(LONGEST_RETRY))
}
