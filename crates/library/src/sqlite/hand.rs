//! The connection that writes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cutline_error::{Error, ErrorKind, Result};
use rusqlite::{Connection, TransactionBehavior};

use super::db::SqliteDb;
use super::error::Context;
use super::journal;
use crate::sql::Db;
use crate::sql::writer::Hand;

pub(super) struct SqliteHand {
    connection: Connection,
    path: PathBuf,
    /// Whether the journal still has content of photos that were removed.
    to_empty: bool,
    /// The pages after which the journal is moved into the file.
    pages: u64,
    /// Bytes that are free on the disk of a file.
    free: fn(&Path) -> Option<u64>,
}

impl SqliteHand {
    pub(super) fn new(connection: Connection, path: PathBuf) -> Self {
        connection.set_prepared_statement_cache_capacity(128);
        Self { connection, path, to_empty: false, pages: 0, free: journal::free }
    }

    /// Lets the journal become as long as the disk allows now.
    fn limit_journal(&mut self) -> rusqlite::Result<()> {
        let pages = journal::pages(&self.path, (self.free)(&self.path));
        if pages != self.pages {
            self.connection.pragma_update(None, "wal_autocheckpoint", pages.cast_signed())?;
            self.pages = pages;
        }
        Ok(())
    }

    fn commit<T>(&mut self, work: impl FnOnce(&dyn Db) -> Result<T>) -> Result<T> {
        let path = &self.path;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .context(path, WHAT)?;
        let done = work(&SqliteDb { connection: &transaction, path, what: WHAT })?;
        transaction.commit().context(path, WHAT)?;
        Ok(done)
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
}

const WHAT: &str = "cannot be written";

impl Hand for SqliteHand {
    fn transaction<T>(&mut self, work: impl FnOnce(&dyn Db) -> Result<T>) -> Result<T> {
        self.limit_journal().context(&self.path, WHAT)?;
        let done = self.commit(work);
        if matches!(&done, Err(error) if error.kind() == ErrorKind::StorageFull) {
            // What fits into the file as it is need not stay in the journal, which then has room again.
            let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)");
        }
        done
    }

    fn savepoint<T>(db: &dyn Db, work: impl FnOnce(&dyn Db) -> Result<T>) -> Result<Result<T>> {
        db.execute("SAVEPOINT call", &[])?;
        let result = work(db);
        if let Err(error) = &result {
            // After some errors, such as a full disk, all of the transaction is gone.
            if db.execute("ROLLBACK TO call", &[]).is_err() {
                return Err(Error::clone(error));
            }
        }
        db.execute("RELEASE call", &[])?;
        Ok(result)
    }

    fn forget(&mut self) -> Result<()> {
        let emptied = self.empty_journal();
        emptied.context(&self.path, WHAT)
    }

    fn compact(&mut self) -> Result<()> {
        let sql = "INSERT INTO words(words) VALUES('optimize'); VACUUM; \
             PRAGMA wal_checkpoint(TRUNCATE);";
        self.connection.execute_batch(sql).context(&self.path, "cannot be rewritten")
    }

    fn idle(&mut self) -> bool {
        // Whoever still reads may prevent it; then the next time does it.
        if self.to_empty {
            let _ = self.empty_journal();
        } else {
            let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)");
        }
        !self.to_empty
    }

    fn close(&mut self) {
        let _ = self.connection.execute_batch("PRAGMA optimize");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    /// Rewrites a row of 100 KB with one transaction each, on a disk with so much free, and returns the
    /// largest size of the journal.
    fn largest_journal(free: fn(&Path) -> Option<u64>) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("photos.db");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.execute_batch("CREATE TABLE t(x)").unwrap();
        let mut hand = SqliteHand { free, ..SqliteHand::new(connection, path) };
        let mut largest = 0;
        for _ in 0..500 {
            let sql = "DELETE FROM t; INSERT INTO t VALUES(randomblob(100000))";
            hand.transaction(|db| {
                for sql in sql.split(';') {
                    db.execute(sql, &[])?;
                }
                Ok(())
            })
            .unwrap();
            let journal = folder.path().join("photos.db-wal");
            largest = largest.max(journal.metadata().unwrap().len());
        }
        largest
    }

    #[test]
    fn the_journal_takes_a_part_of_a_small_disk() {
        // Free after what the journal has taken, as a disk of 8 MB would say it.
        fn small(path: &Path) -> Option<u64> {
            let journal = path.with_extension("db-wal");
            Some(8_000_000 - journal.metadata().map_or(0, |file| file.len()).min(8_000_000))
        }
        let largest = largest_journal(small);
        assert!((1_800_000..2_400_000).contains(&largest), "{largest}");
        let largest = largest_journal(|_| Some(1 << 40));
        assert!(largest > 30_000_000, "{largest}");
    }

    #[test]
    fn a_disk_that_says_nothing_has_room() {
        assert!(largest_journal(|_| None) > 30_000_000);
    }
}
