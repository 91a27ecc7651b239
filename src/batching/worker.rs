//! The one thread that owns the model. Between two decoding steps it lets go of jobs whose caller
//! has left and takes new ones in, so a batch forms by itself while the model is busy, and a job
//! that comes alone never waits for company.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::mpsc;

use super::handle::{JobEvent, Shared};
use crate::engine::{Engine, Event, Job, JobId};
use crate::error::{Error, Result};

/// A job in the queue.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) job: Job,
    pub(super) events: mpsc::Sender<JobEvent>,
    pub(super) queued_at: Instant,
}

impl Entry {
    pub(super) fn caller_is_gone(&self) -> bool {
        self.events.is_closed()
    }
}

/// A job in the model.
struct Running {
    events: mpsc::Sender<JobEvent>,
    started_at: Instant,
    rows: usize,
}

struct Worker<'a> {
    engine: Box<dyn Engine>,
    shared: &'a Shared,
    running: HashMap<JobId, Running>,
    max_rows: usize,
}

/// Runs until the queue is closed and empty.
pub(super) fn run(engine: Box<dyn Engine>, shared: &Shared, max_rows: usize) {
    let mut worker = Worker { engine, shared, running: HashMap::new(), max_rows };
    let _guard = OnExit(shared);
    let mut events = Vec::new();
    while worker.wait_for_work() {
        worker.drop_the_departed();
        worker.admit();
        worker.step(&mut events);
    }
}

/// Whatever ends the thread, nobody waits for it in vain afterwards.
struct OnExit<'a>(&'a Shared);

impl Drop for OnExit<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        if !waiting.closed {
            self.0.failed.store(true, Ordering::Relaxed);
        }
        // Dropping the entries closes their channels.
        waiting.queue.drain().for_each(drop);
    }
}

impl Worker<'_> {
    /// Blocks until there is something to do; false when there never will be.
    fn wait_for_work(&self) -> bool {
        if !self.running.is_empty() {
            return true;
        }
        let mut waiting = self.shared.waiting();
        while waiting.queue.len() == 0 {
            if waiting.closed {
                return false;
            }
            waiting = self.shared.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    fn drop_the_departed(&mut self) {
        self.shared.waiting().queue.prune(Entry::caller_is_gone);
        let gone: Vec<JobId> = self
            .running
            .iter()
            .filter(|(_, running)| running.events.is_closed())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.engine.cancel(id);
            self.forget(id);
        }
    }

    /// Takes in what fits beside the running jobs.
    fn admit(&mut self) {
        loop {
            let rows: usize = self.running.values().map(|r| r.rows).sum();
            let free = self.max_rows.saturating_sub(rows);
            let next = self.shared.waiting().queue.next(free, self.running.is_empty());
            let Some(entry) = next else { break };
            self.start(entry);
        }
    }

    fn start(&mut self, entry: Entry) {
        let Entry { job, events, queued_at } = entry;
        if events.is_closed() {
            return;
        }
        let (id, rows) = (job.id, job.params.rows());
        let started_at = Instant::now();
        send(&events, JobEvent::Started { queued: started_at - queued_at });
        self.running.insert(id, Running { events, started_at, rows });
        self.count();
        let engine = &mut self.engine;
        match guarded(|| engine.start(job)) {
            Ok(()) => {}
            Err(Failure::Error(error)) => self.fail(id, error),
            Err(Failure::Panic(error)) => {
                // The engine's state is unknown now: everything in it is given up.
                self.fail_all(&error);
            }
        }
    }

    fn step(&mut self, events: &mut Vec<Event>) {
        if self.running.is_empty() {
            return;
        }
        events.clear();
        let engine = &mut self.engine;
        let result = guarded(|| engine.step(events));
        for event in events.drain(..) {
            self.deliver(event);
        }
        match result {
            Ok(()) => {}
            Err(Failure::Error(error) | Failure::Panic(error)) => self.fail_all(&error),
        }
    }

    fn deliver(&mut self, event: Event) {
        match event {
            Event::Token { job, token } => {
                if let Some(running) = self.running.get(&job) {
                    send(&running.events, JobEvent::Token(token));
                }
            }
            Event::Done { job, sequences } => {
                if let Some(running) = self.forget(job) {
                    let inference = running.started_at.elapsed();
                    self.shared.degraded.store(false, Ordering::Relaxed);
                    send(&running.events, JobEvent::Done { sequences, inference });
                }
            }
            Event::Failed { job, error } => self.fail(job, error),
        }
    }

    fn fail(&mut self, id: JobId, error: Error) {
        if is_defect(&error) {
            self.shared.record(&error);
        }
        if let Some(running) = self.forget(id) {
            send(&running.events, JobEvent::Failed(error));
        }
    }

    fn fail_all(&mut self, error: &Error) {
        self.shared.record(error);
        let ids: Vec<JobId> = self.running.keys().copied().collect();
        for id in ids {
            self.engine.cancel(id);
            self.fail(id, error.clone());
        }
    }

    fn forget(&mut self, id: JobId) -> Option<Running> {
        let running = self.running.remove(&id);
        self.count();
        running
    }

    fn count(&self) {
        self.shared.in_flight.store(self.running.len(), Ordering::Relaxed);
    }
}

fn is_defect(error: &Error) -> bool {
    !matches!(error.kind(), crate::error::ErrorKind::InvalidParameter)
}

/// The channel has room for all events of a job, so the only way to fail is that the caller left.
fn send(events: &mpsc::Sender<JobEvent>, event: JobEvent) {
    let _ = events.try_send(event);
}

enum Failure {
    Error(Error),
    Panic(Error),
}

/// A panic in the arithmetic is an error of the jobs in it, not the end of the server.
fn guarded(work: impl FnOnce() -> Result<()>) -> Result<(), Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::Error(error)),
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
