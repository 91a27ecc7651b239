//! The thread that writes.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use cutline_error::{Error, Result};
use rusqlite::{Connection, TransactionBehavior};

use super::change::Changer;
use super::error::Context;
use super::texts;
use crate::change::{Applied, Change};
use crate::store::RunId;
use crate::time::now;
use crate::types::Author;

/// Changes that share a transaction at most, unless one call has more.
const GROUP: usize = 2000;
/// When nothing is written for so long, the journal is moved into the file.
const IDLE: Duration = Duration::from_secs(5);

type Answer<T> = SyncSender<Result<T>>;

enum Job {
    Apply(Vec<Change>, Answer<Vec<Applied>>),
    StartRun {
        kind: String,
        parameters: String,
        author: Author,
        answer: Answer<RunId>,
    },
    FinishRun(RunId, Answer<()>),
    /// Moves the journal into the file, and empties it.
    TruncateJournal(Answer<()>),
    Compact(Answer<()>),
}

/// The hand of the thread that writes.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(connection: Connection, path: PathBuf) -> Result<Self> {
        let (jobs, queue) = channel();
        connection.set_prepared_statement_cache_capacity(128);
        let mut thread = Thread { connection, path, to_empty: false };
        let thread = std::thread::Builder::new()
            .name("library".into())
            .spawn(move || thread.run(&queue))
            .map_err(|error| Error::internal("the system provides no thread").with_source(error))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(super) fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>> {
        self.ask(|answer| Job::Apply(changes, answer))
    }

    pub(super) fn start_run(&self, kind: &str, parameters: &str, author: &Author) -> Result<RunId> {
        let (kind, parameters, author) = (kind.to_owned(), parameters.to_owned(), author.clone());
        self.ask(|answer| Job::StartRun { kind, parameters, author, answer })
    }

    pub(super) fn finish_run(&self, run: RunId) -> Result<()> {
        self.ask(|answer| Job::FinishRun(run, answer))
    }

    pub(super) fn truncate_journal(&self) -> Result<()> {
        self.ask(Job::TruncateJournal)
    }

    pub(super) fn compact(&self) -> Result<()> {
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

struct Thread {
    connection: Connection,
    path: PathBuf,
    /// Whether the journal still has content of photos that were removed.
    to_empty: bool,
}

impl Thread {
    fn run(&mut self, queue: &Receiver<Job>) {
        let mut moved = true;
        loop {
            let job = match queue.recv_timeout(IDLE) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) if moved => match queue.recv() {
                    Ok(job) => job,
                    Err(_) => break,
                },
                Err(RecvTimeoutError::Timeout) => {
                    // Whoever still reads may prevent it; then the next commit does it.
                    if self.to_empty {
                        let _ = self.empty_journal();
                    } else {
                        let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)");
                    }
                    moved = !self.to_empty;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            moved = false;
            let mut next = Some(job);
            while let Some(job) = next.take() {
                next = self.one(job, queue);
            }
        }
        let _ = self.connection.execute_batch("PRAGMA optimize");
    }

    /// Does one job, or all changes that wait. Returns the job that does not belong to these.
    fn one(&mut self, job: Job, queue: &Receiver<Job>) -> Option<Job> {
        match job {
            Job::Apply(changes, answer) => return self.group(changes, answer, queue),
            Job::StartRun { kind, parameters, author, answer } => {
                let _ = answer.send(self.start_run(&kind, &parameters, &author));
            }
            Job::FinishRun(run, answer) => {
                let sql = "UPDATE runs SET finished_at = ?2 WHERE id = ?1 AND finished_at IS NULL";
                let finished = self.connection.execute(sql, (run, now()));
                let _ = answer.send(finished.map(drop).context(&self.path, "cannot be written"));
            }
            Job::TruncateJournal(answer) => {
                let emptied = self.empty_journal();
                let _ = answer.send(emptied.context(&self.path, "cannot be written"));
            }
            Job::Compact(answer) => {
                let done = self.connection.execute_batch(
                    "INSERT INTO words(words) VALUES('optimize'); VACUUM; PRAGMA wal_checkpoint(TRUNCATE);",
                );
                let _ = answer.send(done.context(&self.path, "cannot be rewritten"));
            }
        }
        None
    }

    /// Moves the journal into the file and empties it, now or when nobody reads what it had before.
    fn empty_journal(&mut self) -> rusqlite::Result<()> {
        self.to_empty = true;
        // Not for long: changes wait meanwhile.
        self.connection.busy_timeout(Duration::from_secs(1))?;
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy = self.connection.query_row(checkpoint, [], |row| row.get::<_, bool>(0));
        self.connection.busy_timeout(super::BUSY)?;
        self.to_empty = busy?;
        Ok(())
    }

    fn start_run(&self, kind: &str, parameters: &str, author: &Author) -> Result<RunId> {
        let insert = || {
            let transaction = rusqlite::Transaction::new_unchecked(
                &self.connection,
                TransactionBehavior::Immediate,
            )?;
            let author = texts::author_id(&transaction, author)?;
            let sql =
                "INSERT INTO runs(kind, parameters, author_id, started_at) VALUES(?, ?, ?, ?)";
            transaction.execute(sql, (kind, parameters, author, now()))?;
            let run = transaction.last_insert_rowid();
            transaction.commit()?;
            Ok(run)
        };
        insert().context(&self.path, "cannot be written")
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
        match self.commit(calls) {
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

    fn commit(&mut self, calls: Vec<Vec<Change>>) -> Result<Vec<Result<Vec<Applied>>>> {
        let path = &self.path;
        let what = "cannot be written";
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .context(path, what)?;
        let mut results = Vec::with_capacity(calls.len());
        for changes in calls {
            transaction.execute_batch("SAVEPOINT call").context(path, what)?;
            let result = Changer::new(&transaction).all(changes);
            // After some errors, such as a full disk, all of the transaction is gone.
            if transaction.is_autocommit() {
                let error = result.err().unwrap_or(rusqlite::Error::InvalidQuery);
                return Err(error).context(path, what);
            }
            let end =
                if result.is_ok() { "RELEASE call" } else { "ROLLBACK TO call; RELEASE call" };
            transaction.execute_batch(end).context(path, what)?;
            results.push(result.context(path, what));
        }
        transaction.commit().context(path, what)?;
        Ok(results)
    }
}
