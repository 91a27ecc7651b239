//! The library in a file of SQLite.
//!
//! - One thread writes. It takes all changes that wait, makes each in a savepoint of one transaction, and
//!   answers after the commit, which waits for the disk (`sql::writer`, `hand`).
//! - Readers have connections of their own and never wait for the writer.
//! - Other processes may use the file at the same time; whoever writes waits for the others.
//! - Deleted content is overwritten in the file.

mod db;
mod error;
mod hand;
mod journal;
mod maintain;
mod migrate;
mod words;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cutline_error::{Error, ErrorKind, Result};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use self::db::SqliteDb;
use self::error::Context;
use self::hand::SqliteHand;
use crate::change::{Applied, Change};
use crate::sql::reads::reads;
use crate::sql::similar::{Alike, Matrices};
use crate::sql::writer::Writer;
use crate::sql::{Db, report};
use crate::store::{CheckReport, RunId, Stats, Store};
use crate::types::Author;

/// How long to wait for another process that writes. Longer than a check of a large library compares its
/// index, during which nobody writes.
const BUSY: Duration = Duration::from_secs(60);
/// How long a search may take.
const SEARCH: Duration = Duration::from_secs(10);
/// Connections that are kept for the next reader.
const IDLE_READERS: usize = 8;

/// A library in a file. When it is dropped, changes that wait are made first.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
    matrices: Matrices,
    alike: Alike,
}

impl SqliteStore {
    /// Opens the library in the file `path`, and creates it if there is none.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io): the file cannot be opened, is not a library, or was written by a newer
    /// program.
    pub fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let folder = path.parent().filter(|folder| folder.is_dir());
        if folder.is_none() || path.is_dir() {
            return Err(Error::new(
                ErrorKind::Io,
                format!(
                    "the library {} cannot be opened: that is not a file in an existing folder; correct \
                     the path, or create the folder",
                    path.display()
                ),
            ));
        }
        let mut connection =
            connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        migrate::migrate(&mut connection, &path, migrate::STEPS)?;
        for (name, value) in [
            ("journal_mode", "wal"),
            ("synchronous", "full"),
            ("secure_delete", "on"),
            ("cache_size", "-65536"),
        ] {
            connection.pragma_update(None, name, value).context(&path, "cannot be opened")?;
        }
        let writer = Writer::start(SqliteHand::new(connection, path.clone()))?;
        Ok(Self {
            path,
            writer,
            readers: Mutex::default(),
            matrices: Matrices::default(),
            alike: Alike::default(),
        })
    }

    /// Reads with a connection of its own.
    fn read<T>(&self, read: impl FnOnce(&dyn Db) -> Result<T>) -> Result<T> {
        self.read_within(Some(SEARCH), read)
    }

    /// As [`read`](Self::read), without a limit of time.
    fn read_long<T>(&self, read: impl FnOnce(&dyn Db) -> Result<T>) -> Result<T> {
        self.read_within(None, read)
    }

    fn read_within<T>(
        &self,
        time: Option<Duration>,
        read: impl FnOnce(&dyn Db) -> Result<T>,
    ) -> Result<T> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => {
                let connection = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
                connection
                    .pragma_update(None, "query_only", "on")
                    .context(&self.path, "cannot be read")?;
                connection
                    .pragma_update(None, "cache_size", "-16384")
                    .context(&self.path, "cannot be read")?;
                connection.set_prepared_statement_cache_capacity(64);
                connection
            }
        };
        // Interrupts a search that somebody has made expensive.
        let interrupt = time.map(|time| {
            let end = Instant::now() + time;
            move || Instant::now() > end
        });
        connection.progress_handler(20_000, interrupt).context(&self.path, "cannot be read")?;
        // One transaction, so that what is read belongs together.
        let (path, what) = (self.path.as_path(), "cannot be read");
        let result = connection
            .unchecked_transaction()
            .context(path, what)
            .and_then(|transaction| read(&SqliteDb { connection: &transaction, path, what }));
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < IDLE_READERS {
            readers.push(connection);
        }
        result
    }
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let connect = || {
        let connection =
            Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY)?;
        // Else every statement is planned again for the values of each call.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.pragma_update(None, "foreign_keys", "on")?;
        // Views and virtual tables of a file from elsewhere may not call dangerous functions.
        connection.pragma_update(None, "trusted_schema", "off")?;
        Ok(connection)
    };
    connect().context(path, "cannot be opened")
}

impl Store for SqliteStore {
    fn apply(&self, mut changes: Vec<Change>) -> Result<Vec<Applied>> {
        changes.iter_mut().try_for_each(Change::normalise)?;
        let removed = changes.iter().any(|change| matches!(change, Change::Purge(_)));
        let applied = self.writer.apply(changes)?;
        if removed {
            self.matrices.forget();
            self.writer.forget()?;
        }
        Ok(applied)
    }

    reads!();

    fn start_run(&self, kind: &str, parameters: &str, author: &Author) -> Result<RunId> {
        self.writer.start_run(kind, parameters, author)
    }

    fn finish_run(&self, run: RunId) -> Result<()> {
        self.writer.finish_run(run)
    }

    fn stats(&self) -> Result<Stats> {
        let pages = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        self.read(|db| {
            let stats = report::stats(db)?;
            Ok(Stats { bytes: db.value(pages, &[])?, schema: migrate::newest(), ..stats })
        })
    }

    fn check(&self) -> Result<CheckReport> {
        maintain::check(&connect(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?, &self.path)
    }

    fn backup(&self, path: &Path) -> Result<()> {
        let connection = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        maintain::backup(&connection, path)
    }

    fn compact(&self) -> Result<()> {
        self.writer.compact()
    }
}
