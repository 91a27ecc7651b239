//! The async face of the worker.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::queue::Queue;
use super::worker::{self, Entry};
use crate::engine::{Engine, GenerationParams, Job, JobId, PixelValues, Sequence};
use crate::error::{Error, ErrorKind, Result};

/// What the caller of one job hears.
#[derive(Debug)]
pub enum JobEvent {
    /// The job left the queue; `queued` is how long it waited there.
    Started {
        /// Time in the queue.
        queued: Duration,
    },
    /// The next token of the first sequence.
    Token(u32),
    /// The end of it.
    Done {
        /// Best first.
        sequences: Vec<Sequence>,
        /// From leaving the queue to the end.
        inference: Duration,
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

/// How the queue and the model are doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Jobs that wait.
    pub queue_depth: usize,
    /// Jobs that may wait.
    pub queue_capacity: usize,
    /// Jobs in the model.
    pub in_flight: usize,
    /// Whether new jobs are accepted.
    pub accepting: bool,
    /// Whether the last run of the model failed.
    pub degraded: bool,
    /// Whether the model's thread is gone.
    pub failed: bool,
    /// The last failure of the model, for operators.
    pub last_error: Option<String>,
}

/// What handle and worker share.
#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Waiting>,
    pub(super) wake: Condvar,
    pub(super) in_flight: AtomicUsize,
    pub(super) degraded: AtomicBool,
    pub(super) failed: AtomicBool,
    last_error: Mutex<Option<String>>,
    capacity: usize,
}

/// The part behind the lock.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) queue: Queue<Entry>,
    /// No new jobs; what is accepted is finished.
    pub(super) closed: bool,
}

impl Shared {
    /// A poisoned lock means that a panic was caught elsewhere; the queue itself is always whole,
    /// because no code that can panic runs while it is held.
    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record(&self, error: &Error) {
        self.degraded.store(true, Ordering::Relaxed);
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(error.to_string());
    }
}

/// Cloneable access to the model. When the last clone is dropped, accepted work is finished and the
/// thread is joined.
#[derive(Debug, Clone)]
pub struct Handle {
    owner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    next_id: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    /// Starts the thread that owns `engine`. At most `max_batch_size` rows (captions or beams) are
    /// decoded together, and at most `queue_capacity` jobs wait.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal): the system has no thread to give.
    pub fn spawn(
        engine: Box<dyn Engine>,
        max_batch_size: usize,
        queue_capacity: usize,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Waiting { queue: Queue::new(queue_capacity), closed: false }),
            wake: Condvar::new(),
            in_flight: AtomicUsize::new(0),
            degraded: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            last_error: Mutex::new(None),
            capacity: queue_capacity,
        });
        let of_worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("model".to_owned())
            .spawn(move || worker::run(engine, &of_worker, max_batch_size))
            .map_err(|e| Error::internal("cannot start the model's thread").with_source(e))?;
        let owner = Owner { shared, next_id: AtomicU64::new(0), thread: Mutex::new(Some(thread)) };
        Ok(Self { owner: Arc::new(owner) })
    }

    /// Queues one image.
    ///
    /// # Errors
    /// [`QueueFull`](ErrorKind::QueueFull), [`ShuttingDown`](ErrorKind::ShuttingDown), or
    /// [`Internal`](ErrorKind::Internal) when the model's thread is gone.
    pub fn submit(
        &self,
        pixels: Arc<PixelValues>,
        prompt: Vec<u32>,
        params: GenerationParams,
    ) -> Result<Submission> {
        let shared = &self.owner.shared;
        // Room for every event that the job can have, so that the worker never waits for a reader.
        let (sender, events) = mpsc::channel(params.max_new_tokens + 4);
        let rows = params.rows();
        let id = JobId(self.owner.next_id.fetch_add(1, Ordering::Relaxed));
        let entry = Entry {
            job: Job { id, pixels, prompt, params },
            events: sender,
            queued_at: Instant::now(),
        };
        {
            let mut waiting = shared.waiting();
            if waiting.closed {
                return Err(shutting_down());
            }
            if shared.failed.load(Ordering::Relaxed) {
                return Err(Error::internal("the model's thread has stopped"));
            }
            if waiting.queue.push(rows, entry).is_err() {
                waiting.queue.prune(Entry::caller_is_gone);
                return Err(queue_full());
            }
        }
        shared.wake.notify_one();
        Ok(Submission { events })
    }

    /// How queue and model are doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &self.owner.shared;
        let (queue_depth, closed) = {
            let waiting = shared.waiting();
            (waiting.queue.len(), waiting.closed)
        };
        let failed = shared.failed.load(Ordering::Relaxed);
        let last_error = shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Status {
            queue_depth,
            queue_capacity: shared.capacity,
            in_flight: shared.in_flight.load(Ordering::Relaxed),
            accepting: !closed && !failed && queue_depth < shared.capacity,
            degraded: shared.degraded.load(Ordering::Relaxed),
            failed,
            last_error,
        }
    }

    /// Accepts no more work; what was accepted is finished.
    pub fn close(&self) {
        self.owner.shared.waiting().closed = true;
        self.owner.shared.wake.notify_all();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.waiting().closed = true;
        self.shared.wake.notify_all();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic in that thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

pub(super) fn shutting_down() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the server is stopping; send the request to another one")
        .with_retry_after(Duration::from_secs(5))
}

fn queue_full() -> Error {
    Error::new(
        ErrorKind::QueueFull,
        "too many images are waiting; nothing was queued, try again a little later",
    )
    .with_retry_after(Duration::from_secs(1))
}
