//! The async side of the scheduler: reserve queue slots, submit jobs, read the status.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::job::{JobRequest, ScheduledJob, Submission};
use super::queue::Priority;
use super::shared::{SchedulerState, SchedulerStatus, SharedState};
use super::worker;
use crate::engine::{Engine, JobId};
use crate::metrics::Metrics;
use cutline_error::{Error, ErrorKind, Result};

/// How the scheduler works.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// Rows (captions or beams) that are decoded together.
    pub max_batch_size: usize,
    /// Images that may wait.
    pub queue_capacity: usize,
    /// When new images are encoded.
    pub vision_order: VisionOrder,
    /// Images that the vision tower encodes faster together than one after another, at least 1; see
    /// [`EngineInfo`](crate::engine::EngineInfo).
    pub vision_batch: usize,
    /// Where stages, steps and failures are counted.
    pub metrics: Metrics,
}

/// When new images are encoded while others are decoded. docs/design/scheduling.md has the
/// measurements behind the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VisionOrder {
    /// Before the next step, enough images for a batch of two, or of half of the waiting images if
    /// that is more. Under light load captions finish early, under heavy load batches are large.
    #[default]
    ByBacklog,
    /// Before the next step, all images that fit into the batch.
    AllFirst,
}

/// Cloneable access to the model. When the last clone and the last [`QueueSlot`] are dropped, the
/// model thread finishes the accepted jobs and ends.
///
/// That drop waits for the thread, except inside a tokio runtime, where it hands the wait to the
/// runtime's blocking threads.
#[derive(Debug, Clone)]
pub struct Handle {
    model: Arc<ModelThread>,
}

/// The thread that owns the engine, and the state shared with it.
#[derive(Debug)]
struct ModelThread {
    shared: Arc<SharedState>,
    next_id: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Starts the thread that owns `engine`.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal): the system cannot start a thread.
    pub fn spawn(engine: Box<dyn Engine>, options: SchedulerOptions) -> Result<Self> {
        let metrics = options.metrics.clone();
        let rows = options.max_batch_size.max(1);
        let shared = Arc::new(SharedState::new(rows, options.queue_capacity, metrics));
        let of_worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("model".to_owned())
            .spawn(move || worker::run(engine, &of_worker, &options))
            .map_err(|e| Error::internal("cannot start the model's thread").with_source(e))?;
        let model = ModelThread { shared, next_id: AtomicU64::new(0), thread: Some(thread) };
        Ok(Self { model: Arc::new(model) })
    }

    /// Reserves `count` slots of the queue, all or none. A slot counts against the queue's capacity
    /// from now on, before there is an image for it, until its job leaves the queue.
    ///
    /// # Errors
    /// - [`QueueFull`](ErrorKind::QueueFull), with an estimate of when to try again;
    /// - [`ShuttingDown`](ErrorKind::ShuttingDown);
    /// - [`NotReady`](ErrorKind::NotReady): the model thread has ended.
    pub fn reserve(&self, count: usize, priority: Priority) -> Result<Vec<QueueSlot>> {
        {
            let mut state = self.model.shared.lock();
            if state.closed {
                return Err(Error::shutting_down());
            }
            if state.failed {
                return Err(Error::model_stopped());
            }
            if state.queue.reserve(count).is_err() {
                state.queue.remove_if(ScheduledJob::is_abandoned);
                let now = Instant::now();
                state
                    .queue
                    .reserve(count)
                    .map_err(|missing| queue_full(count, missing, &state, now))?;
            }
        }
        let slot = |_| QueueSlot { model: Arc::clone(&self.model), priority, reserved: true };
        Ok((0..count).map(slot).collect())
    }

    /// The present state of queue and model.
    #[must_use]
    pub fn status(&self) -> SchedulerStatus {
        self.model.shared.lock().status(Instant::now())
    }

    /// Whether the model thread has ended for good.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.model.shared.failure.get().is_some()
    }

    /// Waits until the model thread has ended for good. Pending for as long as the model works.
    pub async fn failed(&self) {
        self.model.shared.failure.wait().await;
    }

    /// Stops accepting jobs. Accepted jobs and reserved slots are still served.
    pub fn close(&self) {
        self.model.close();
    }
}

/// A reserved slot of the queue. Dropping it frees the slot.
#[derive(Debug)]
pub struct QueueSlot {
    model: Arc<ModelThread>,
    priority: Priority,
    /// False once a job is in the slot.
    reserved: bool,
}

impl QueueSlot {
    /// Puts a job into the slot.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter), or [`NotReady`](ErrorKind::NotReady) if
    /// the model thread has ended.
    pub fn submit(mut self, request: JobRequest) -> Result<Submission> {
        let id = JobId(self.model.next_id.fetch_add(1, Ordering::Relaxed));
        let (job, submission) = ScheduledJob::new(id, request)?;
        let shared = &self.model.shared;
        {
            let mut state = shared.lock();
            if state.failed {
                return Err(Error::model_stopped());
            }
            state.queue.push(self.priority, job.rows(), job);
            self.reserved = false;
        }
        shared.wake.notify_one();
        Ok(submission)
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        if self.reserved {
            let shared = &self.model.shared;
            shared.lock().queue.release();
            // A closed scheduler ends when the last slot is free.
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
        let Some(thread) = self.thread.take() else { return };
        // A panic of the thread was reported where it happened.
        let join = move || drop(thread.join());
        match tokio::runtime::Handle::try_current() {
            // A decode step takes too long to block a thread of the runtime.
            Ok(runtime) => drop(runtime.spawn_blocking(join)),
            Err(_) => join(),
        }
    }
}

/// The estimate is too rough to ask for a longer wait than this.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

fn queue_full(count: usize, missing: usize, state: &SchedulerState, now: Instant) -> Error {
    let capacity = state.queue.capacity();
    let detail = if count > capacity {
        format!(
            "{count} images are more than the queue holds ({capacity}); nothing was queued, send \
             fewer at a time or raise QUEUE_CAPACITY"
        )
    } else {
        "too many images are waiting; nothing was queued, try again a little later".to_owned()
    };
    let wait = state.time_for(missing.min(capacity), now).unwrap_or(Duration::from_secs(1));
    Error::new(ErrorKind::QueueFull, detail).with_retry_after(wait.min(LONGEST_RETRY))
}
