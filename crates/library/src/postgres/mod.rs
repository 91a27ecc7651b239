//! The library in a database of PostgreSQL, in the schema `cutline`.
//!
//! - Statements and rules are those of the other store (`sql`); connections, the schema and the index of
//!   words are here.
//! - One thread writes, as with SQLite, and takes a lock of the database for each transaction, so that all
//!   processes write one after another. Readers never wait.
//! - The crate `postgres` runs its connections in event loops of their own, which panic inside of another
//!   one. Callers need not know whether their thread drives one: whatever uses a connection has a thread of
//!   its own.

mod address;
mod db;
mod error;
mod hand;
mod many;
mod migrate;
mod stem;
mod tls;
mod words;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use cutline_error::{Error, ErrorKind, Result};

use self::address::Address;
use self::db::Connection;
use self::hand::PostgresHand;
use crate::change::{Applied, Change};
use crate::sql::check::{self, LISTED};
use crate::sql::derived::Words;
use crate::sql::reads::reads;
use crate::sql::similar::{Alike, Matrices};
use crate::sql::writer::Writer;
use crate::sql::{Db, report};
use crate::store::{CheckReport, RunId, Stats, Store};
use crate::types::Author;

/// Settings of a connection that reads. Searches differ too much for one plan.
const READER: &str = "SET search_path = cutline; SET plan_cache_mode = force_custom_plan; \
     SELECT set_config('statement_timeout', '10s', false) \
     WHERE current_setting('statement_timeout') = '0';";
const READ: &str = "cannot be read";
/// Connections that are kept for the next reader.
const IDLE_READERS: usize = 8;

/// A library in a database. When it is dropped, changes that wait are made first.
pub struct PostgresStore {
    address: Arc<Address>,
    /// `None` while it is dropped.
    open: Option<Open>,
    matrices: Matrices,
    alike: Alike,
}

struct Open {
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresStore").field(&self.address).finish()
    }
}

/// Runs `work` in a thread of its own; see the module.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join())
        .map_err(|_| Error::internal("a thread of the library ended with a panic"))
}

impl PostgresStore {
    /// Opens the library at `url`, and creates it in an existing database if there is none.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): the address is not understood. [`Io`](ErrorKind::Io): the server or
    /// the database cannot be used, or a newer program wrote the library.
    pub fn open(url: &str) -> Result<Self> {
        let address = Address::new(url)?;
        let open = apart(|| {
            let connection = Connection::open(&address, hand::WHAT, hand::SETUP)?;
            migrate::migrate(&connection, &address.name, migrate::STEPS)?;
            let hand = PostgresHand::new(Arc::clone(&address), connection);
            Ok(Open { writer: Writer::start(hand)?, readers: Mutex::default() })
        })??;
        Ok(Self {
            address,
            open: Some(open),
            matrices: Matrices::default(),
            alike: Alike::default(),
        })
    }

    /// Whether there is a library at `url`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn exists(url: &str) -> Result<bool> {
        let address = Address::new(url)?;
        apart(|| migrate::exists(&Connection::open(&address, READ, READER)?))?
    }

    fn inner(&self) -> Result<&Open> {
        self.open.as_ref().ok_or_else(|| Error::internal("the library is closed"))
    }

    fn writer(&self) -> Result<&Writer> {
        Ok(&self.inner()?.writer)
    }

    /// Reads with a connection of its own.
    fn read<T: Send>(&self, read: impl FnOnce(&dyn Db) -> Result<T> + Send) -> Result<T> {
        self.read_within("", read)
    }

    /// As [`read`](Self::read), without a limit of time.
    fn read_long<T: Send>(&self, read: impl FnOnce(&dyn Db) -> Result<T> + Send) -> Result<T> {
        self.read_within("; SET LOCAL statement_timeout = 0", read)
    }

    fn read_within<T: Send>(
        &self,
        setup: &str,
        read: impl FnOnce(&dyn Db) -> Result<T> + Send,
    ) -> Result<T> {
        let readers = &self.inner()?.readers;
        apart(|| self.read_here(readers, setup, read))?
    }

    fn read_here<T>(
        &self,
        readers: &Mutex<Vec<Connection>>,
        setup: &str,
        read: impl FnOnce(&dyn Db) -> Result<T>,
    ) -> Result<T> {
        // One snapshot, so that what is read belongs together.
        let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY{setup}");
        let idle = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // The server may have been restarted since.
        let idle = idle.filter(|connection| connection.batch(&begin).is_ok());
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let connection = Connection::open(&self.address, READ, READER)?;
                connection.batch(&begin)?;
                connection
            }
        };
        let result = read(&connection);
        let ended = connection.batch("COMMIT");
        let mut readers = readers.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_ok() && readers.len() < IDLE_READERS {
            readers.push(connection);
        }
        result
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        let open = self.open.take();
        let _ = apart(|| drop(open));
    }
}

impl Store for PostgresStore {
    fn apply(&self, mut changes: Vec<Change>) -> Result<Vec<Applied>> {
        changes.iter_mut().try_for_each(Change::normalise)?;
        let removed = changes.iter().any(|change| matches!(change, Change::Purge(_)));
        let applied = self.writer()?.apply(changes)?;
        if removed {
            self.matrices.forget();
        }
        Ok(applied)
    }

    reads!();

    fn start_run(&self, kind: &str, parameters: &str, author: &Author) -> Result<RunId> {
        self.writer()?.start_run(kind, parameters, author)
    }

    fn finish_run(&self, run: RunId) -> Result<()> {
        self.writer()?.finish_run(run)
    }

    fn stats(&self) -> Result<Stats> {
        let bytes = "SELECT CAST(coalesce(sum(pg_total_relation_size(c.oid)), 0) AS bigint) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = 'cutline' AND c.relkind = 'r'";
        self.read(|db| {
            let stats = report::stats(db)?;
            Ok(Stats { bytes: db.value(bytes, &[])?, schema: migrate::newest(), ..stats })
        })
    }

    fn check(&self) -> Result<CheckReport> {
        self.read_long(|db| {
            let mut problems = check::rules(db, damage)?;
            problems.extend(check_words(db).or_else(|error| damage(error).map(|one| vec![one]))?);
            problems.truncate(LISTED);
            let assets = db.value("SELECT count(*) FROM assets", &[])?;
            Ok(CheckReport { assets, problems })
        })
    }

    fn backup(&self, _: &Path) -> Result<()> {
        Err(Error::new(
            ErrorKind::Config,
            format!(
                "{} is copied by the tools of PostgreSQL: pg_dump --schema=cutline --format=custom \
                 --file=FILE and the address, while it is in use; pg_restore brings it back",
                self.address.name
            ),
        ))
    }

    fn compact(&self) -> Result<()> {
        self.writer()?.compact()
    }
}

/// What the server says about damaged pages is a finding; that it cannot be reached is none.
fn damage(error: Error) -> Result<String> {
    match error.kind() {
        ErrorKind::Io if error.detail().contains("damaged") => Ok(error.to_string()),
        _ => Err(error),
    }
}

/// Compares the index with the words that it was made of.
fn check_words(db: &dyn Db) -> Result<Vec<String>> {
    let sql = "SELECT d.caption, d.alt_text, d.tags, d.names, CAST(w.words AS text) \
         FROM documents d LEFT JOIN words w ON w.asset_id = d.id";
    let mut wrong = 0;
    db.each(sql, &[], &mut |row| {
        let words: Words = [row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?];
        let stored: Option<String> = row.get(4)?;
        wrong += i32::from(!stored.is_some_and(|stored| words::is_vector_of(&stored, &words)));
        Ok(())
    })?;
    Ok(match wrong {
        0 => Vec::new(),
        _ => vec![format!(
            "{wrong} times: the index of words has others than the texts of the photo"
        )],
    })
}
