//! Keys that are kept in the library: who may do what, how much, and what was used.
//!
//! - `account`: one key with its limits and its budget; `limits`: a number of things per minute;
//! - `writer`: the thread that stores usage, and reads what other programs changed.
//!
//! What is guaranteed: every answer that a client has received is counted, once, whatever ends the process
//! afterwards. Usage of a request that was not answered is not counted, unless the process ends, or the
//! client leaves, between the commit and the answer.

mod account;
mod limits;
mod writer;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use cutline_library::{ApiKey, BudgetPeriod, Store, UsageGroup, UsageQuery, Used, now, period};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

pub use self::account::{BudgetStanding, KeyAccount, Standings, Visit};
pub use self::limits::Standing;
use self::writer::Job;
use crate::metrics::Metrics;
use cutline_error::{Error, Result};

/// The present time in milliseconds since 1970. Tests have their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl Clock {
    /// A clock that `now` reads.
    pub fn new(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now(&self) -> i64 {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The keys of a library. When it is dropped, usage that waits is stored.
#[derive(Debug)]
pub struct Accounts {
    inner: Arc<Inner>,
    jobs: Sender<Job>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    clock: Clock,
    metrics: Metrics,
    jobs: Mutex<Sender<Job>>,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<i64, Arc<KeyAccount>>,
    /// The accounts that hashes of keys stand for, and until when each does.
    by_hash: HashMap<[u8; 32], (Arc<KeyAccount>, Option<i64>)>,
}

impl Accounts {
    /// Reads the keys of `store`, and starts the thread.
    ///
    /// # Errors
    /// The library cannot be read, or the system provides no thread.
    pub fn start(store: Arc<dyn Store>, clock: Clock, metrics: Metrics) -> Result<Self> {
        let (jobs, queue) = channel();
        let inner = Arc::new(Inner {
            store,
            clock,
            metrics,
            jobs: Mutex::new(jobs.clone()),
            known: RwLock::default(),
        });
        inner.refresh()?;
        let for_thread = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("usage".into())
            .spawn(move || writer::run(&for_thread, &queue))
            .map_err(|error| Error::internal("the system provides no thread").with_source(error))?;
        Ok(Self { inner, jobs, thread: Some(thread) })
    }

    /// Whether there is, or was, a key. From then on, requests need one.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.inner.known.read().by_id.is_empty()
    }

    /// The account of a key; `None` if there is no such key, or a newer one has replaced it. The hash is
    /// of something random, so the time that this takes tells nothing about other keys.
    #[must_use]
    pub fn find(&self, key: &[u8]) -> Option<Arc<KeyAccount>> {
        let hash = *blake3::hash(key).as_bytes();
        let known = self.inner.known.read();
        let (account, until) = known.by_hash.get(&hash)?;
        let valid = until.is_none_or(|until| self.inner.clock.now() < until);
        valid.then(|| Arc::clone(account))
    }

    /// Reads the keys again, after this program has changed them.
    ///
    /// # Errors
    /// The library cannot be read.
    pub async fn refresh(&self) -> Result<()> {
        let (answer, done) = oneshot::channel();
        let stopped = || Error::internal("the thread that stores usage has stopped");
        self.jobs.send(Job::Refresh(answer)).map_err(|_| stopped())?;
        done.await.map_err(|_| stopped())?
    }

    /// The time by which budgets begin and end.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.inner.clock.now()
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        let _ = self.jobs.send(Job::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn account(&self, id: i64) -> Option<Arc<KeyAccount>> {
        self.known.read().by_id.get(&id).cloned()
    }

    /// Reads the keys, and what was used of their budgets. Only the thread that stores usage may do this,
    /// so that nothing is stored meanwhile.
    fn refresh(&self) -> Result<()> {
        let keys = self.store.keys()?;
        let time = self.clock.now();
        let budgets = keys.iter().any(|key| key.rules.budget.is_some());
        let used = |length| -> Result<(i64, HashMap<i64, Used>)> {
            let (from, end) = period(time, length);
            let query = UsageQuery { from, to: end - 1, key: None, group: UsageGroup::Key };
            let rows = if budgets { self.store.usage(&query)? } else { Vec::new() };
            Ok((from, rows.into_iter().filter_map(|row| Some((row.id?, row.used))).collect()))
        };
        let (day, month) = (used(BudgetPeriod::Day)?, used(BudgetPeriod::Month)?);
        let since = |(begin, used): &(i64, HashMap<i64, Used>), id| {
            (*begin, used.get(&id).copied().unwrap_or_default())
        };
        let mut by_id = self.known.read().by_id.clone();
        let mut by_hash = HashMap::new();
        for key in keys {
            let id = key.id;
            let account = by_id.entry(id).or_insert_with(|| Arc::new(self.open(key.clone())));
            for (hash, until) in &key.hashes {
                by_hash.insert(*hash, (Arc::clone(account), *until));
            }
            account.update(key, since(&day, id), since(&month, id));
        }
        *self.known.write() = Known { by_id, by_hash };
        Ok(())
    }

    fn open(&self, key: ApiKey) -> KeyAccount {
        let jobs = self.jobs.lock().clone();
        KeyAccount::new(key, self.clock.clone(), jobs, self.metrics.clone())
    }
}
