//! The thread that stores usage.
//!
//! It takes everything that waits, adds it up by key, model and day, and stores it in one transaction.
//! Requests wait for that before they are answered, so an answer that a client has is in the library; and
//! what a commit costs is shared by all that wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use cutline_library::{BudgetPeriod, Change, UsageEntry, period};
use tokio::sync::oneshot;

use super::Inner;
use crate::captioner::{Account, Work};
use cutline_error::{Error, ErrorKind, Result};

/// How often the keys are read, which other programs may change.
const REFRESH: Duration = Duration::from_secs(2);
/// Settlements that share a transaction at most.
const TOGETHER: usize = 1000;

/// What the thread is asked for.
#[derive(Debug)]
pub(super) enum Job {
    Settle(Settlement),
    /// Nobody waits for it.
    Count(UsageEntry),
    /// Reads the keys.
    Refresh(oneshot::Sender<Result<()>>),
    Stop,
}

/// Usage that a request waits for.
#[derive(Debug)]
pub(super) struct Settlement {
    pub(super) entry: UsageEntry,
    pub(super) reserved: Work,
    pub(super) answer: oneshot::Sender<Result<()>>,
}

#[derive(Default)]
struct Batch {
    settlements: Vec<Settlement>,
    counts: Vec<UsageEntry>,
    refreshes: Vec<oneshot::Sender<Result<()>>>,
    stop: bool,
}

impl Batch {
    fn push(&mut self, job: Job) {
        match job {
            Job::Settle(settlement) => self.settlements.push(settlement),
            Job::Count(entry) => self.counts.push(entry),
            Job::Refresh(answer) => self.refreshes.push(answer),
            Job::Stop => self.stop = true,
        }
    }

    fn is_full(&self) -> bool {
        self.stop || self.settlements.len() + self.counts.len() >= TOGETHER
    }

    /// The sums by key, model and day.
    fn sums(&self) -> Vec<UsageEntry> {
        let mut sums: HashMap<(i64, &str, i64), UsageEntry> = HashMap::new();
        let settled = self.settlements.iter().map(|settlement| &settlement.entry);
        for entry in settled.chain(&self.counts) {
            let key = (entry.key, entry.model.as_str(), period(entry.at, BudgetPeriod::Day).0);
            match sums.get_mut(&key) {
                Some(sum) => {
                    sum.used.add(&entry.used);
                    sum.at = sum.at.max(entry.at);
                }
                None => {
                    sums.insert(key, entry.clone());
                }
            }
        }
        sums.into_values().collect()
    }
}

pub(super) fn run(inner: &Arc<Inner>, queue: &Receiver<Job>) {
    let mut refresh_at = Instant::now() + REFRESH;
    loop {
        let mut batch = Batch::default();
        match queue.recv_timeout(refresh_at.saturating_duration_since(Instant::now())) {
            Ok(job) => batch.push(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while !batch.is_full()
            && let Ok(job) = queue.try_recv()
        {
            batch.push(job);
        }
        store(inner, &mut batch);
        if !batch.refreshes.is_empty() || refresh_at <= Instant::now() {
            let read = inner.refresh();
            if let Err(error) = &read {
                tracing::warn!(%error, "the keys cannot be read; those that are known stay valid");
            }
            for answer in batch.refreshes {
                let _ = answer.send(read.clone());
            }
            refresh_at = Instant::now() + REFRESH;
        }
        if batch.stop {
            return;
        }
    }
}

fn store(inner: &Inner, batch: &mut Batch) {
    let sums = batch.sums();
    if sums.is_empty() {
        return;
    }
    let stored = inner.store.apply(vec![Change::Usage(sums)]).map(drop);
    if let Err(error) = &stored {
        tracing::error!(%error, "the usage of API keys cannot be stored; their requests are refused");
    }
    let stored = stored.map_err(|error| {
        let detail = "the usage of the API key cannot be stored, so the answer is held back; try again, or \
             look into the log of the server";
        Error::new(ErrorKind::LibraryBusy, detail).with_source(error)
    });
    for settlement in batch.settlements.drain(..) {
        if let Some(account) = inner.account(settlement.entry.key) {
            match &stored {
                Ok(()) => account.settled(&settlement),
                Err(_) => account.release(settlement.reserved),
            }
        }
        let _ = settlement.answer.send(stored.clone());
    }
}
