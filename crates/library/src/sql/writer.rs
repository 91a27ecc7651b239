//! The thread that writes.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use cutline_error::{Error, Result};

use super::change::Changer;
use super::value::values;
use super::{Db, texts};
use crate::change::{Applied, Change};
use crate::store::RunId;
use crate::time::now;
use crate::types::Author;

/// Changes that share a transaction at most, unless one call has more.
const GROUP: usize = 2000;
/// After so long without a change, there is time for other work.
const IDLE: Duration = Duration::from_secs(5);

/// The connection that writes. It is made and used in the thread that writes.
pub(crate) trait Hand: Send + 'static {
    /// Does `work` in a transaction, as the only one that writes. When it returns, the changes survive a
    /// crash.
    ///
    /// # Errors
    /// Nothing was changed, unless the database was lost while it answered.
    fn transaction<T>(&mut self, work: impl FnOnce(&dyn Db) -> Result<T>) -> Result<T>;

    /// Does `work`, and takes back what it did if it fails. The inner result is that of `work`.
    ///
    /// # Errors
    /// All of the transaction is gone.
    fn savepoint<T>(db: &dyn Db, work: impl FnOnce(&dyn Db) -> Result<T>) -> Result<Result<T>>;

    /// Removes what is left of deleted photos outside of the tables.
    fn forget(&mut self) -> Result<()>;

    /// Rewrites the database without what was deleted.
    fn compact(&mut self) -> Result<()>;

    /// Nobody has written for a while. Returns whether it need not be called again before somebody does.
    fn idle(&mut self) -> bool;

    /// The library is closed.
    fn close(&mut self);
}

type Answer<T> = SyncSender<Result<T>>;

enum Job {
    Apply(Vec<Change>, Answer<Vec<Applied>>),
    StartRun { kind: String, parameters: String, author: Author, answer: Answer<RunId> },
    FinishRun(RunId, Answer<()>),
    Forget(Answer<()>),
    Compact(Answer<()>),
}

/// The hand of the thread that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(hand: impl Hand) -> Result<Self> {
        let (jobs, queue) = channel();
        let mut thread = Thread { hand };
        let thread = std::thread::Builder::new()
            .name("library".into())
            .spawn(move || thread.run(&queue))
            .map_err(|error| Error::internal("the system provides no thread").with_source(error))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(crate) fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>> {
        self.ask(|answer| Job::Apply(changes, answer))
    }

    pub(crate) fn start_run(&self, kind: &str, parameters: &str, author: &Author) -> Result<RunId> {
        let (kind, parameters, author) = (kind.to_owned(), parameters.to_owned(), author.clone());
        self.ask(|answer| Job::StartRun { kind, parameters, author, answer })
    }

    pub(crate) fn finish_run(&self, run: RunId) -> Result<()> {
        self.ask(|answer| Job::FinishRun(run, answer))
    }

    pub(crate) fn forget(&self) -> Result<()> {
        self.ask(Job::Forget)
    }

    pub(crate) fn compact(&self) -> Result<()> {
        self.ask(Job::Compact)
    }

    fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T> {
        let (answer, result) = sync_channel(1);
        let stopped = || Error::internal("the library's writer has stopped");
        let jobs = self.jobs.as_ref().ok_or_else(stopped)?;
        jobs.send(job(answer)).map_err(|_| stopped())?;
        result.recv().map_err(|_| stopped())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Thread<H> {
    hand: H,
}

impl<H: Hand> Thread<H> {
    fn run(&mut self, queue: &Receiver<Job>) {
        let mut rests = true;
        loop {
            let job = match queue.recv_timeout(IDLE) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) if rests => match queue.recv() {
                    Ok(job) => job,
                    Err(_) => break,
                },
                Err(RecvTimeoutError::Timeout) => {
                    rests = self.hand.idle();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            rests = false;
            let mut next = Some(job);
            while let Some(job) = next.take() {
                next = self.one(job, queue);
            }
        }
        self.hand.close();
    }

    /// Does one job, or all changes that wait. Returns the job that does not belong to these.
    fn one(&mut self, job: Job, queue: &Receiver<Job>) -> Option<Job> {
        match job {
            Job::Apply(changes, answer) => return self.group(changes, answer, queue),
            Job::StartRun { kind, parameters, author, answer } => {
                let started = self.hand.transaction(|db| {
                    let author = texts::author_id(db, &author)?;
                    let sql = "INSERT INTO runs(kind, parameters, author_id, started_at) \
                         VALUES(?, ?, ?, ?)";
                    db.insert(sql, values![&kind, &parameters, author, now()])
                });
                let _ = answer.send(started);
            }
            Job::FinishRun(run, answer) => {
                let sql = "UPDATE runs SET finished_at = ?2 WHERE id = ?1 AND finished_at IS NULL";
                let finished = self.hand.transaction(|db| db.execute(sql, values![run, now()]));
                let _ = answer.send(finished.map(drop));
            }
            Job::Forget(answer) => {
                let _ = answer.send(self.hand.forget());
            }
            Job::Compact(answer) => {
                let _ = answer.send(self.hand.compact());
            }
        }
        None
    }

    /// Makes the changes of all calls that wait, in one transaction. Each call succeeds or fails by
    /// itself; nobody gets an answer before the commit.
    fn group(
        &mut self,
        changes: Vec<Change>,
        answer: Answer<Vec<Applied>>,
        queue: &Receiver<Job>,
    ) -> Option<Job> {
        let mut next = None;
        let mut size = changes.len();
        let mut calls = vec![(changes, answer)];
        while size < GROUP {
            match queue.try_recv() {
                Ok(Job::Apply(changes, answer)) => {
                    size += changes.len();
                    calls.push((changes, answer));
                }
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let (calls, answers): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
        let committed = self.hand.transaction(|db| {
            let one = |changes| H::savepoint(db, |db| Changer::new(db).all(changes));
            calls.into_iter().map(one).collect::<Result<Vec<_>>>()
        });
        match committed {
            Ok(results) => {
                for (answer, result) in answers.into_iter().zip(results) {
                    let _ = answer.send(result);
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
        next
    }
}
