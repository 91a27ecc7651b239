//! The connection that writes.

use std::path::PathBuf;
use std::time::Duration;

use cutline_error::{Error, Result};
use rusqlite::{Connection, TransactionBehavior};

use super::db::SqliteDb;
use super::error::Context;
use crate::sql::Db;
use crate::sql::writer::Hand;

pub(super) struct SqliteHand {
    connection: Connection,
    path: PathBuf,
    /// Whether the journal still has content of photos that were removed.
    to_empty: bool,
}

impl SqliteHand {
    pub(super) fn new(connection: Connection, path: PathBuf) -> Self {
        connection.set_prepared_statement_cache_capacity(128);
        Self { connection, path, to_empty: false }
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
        let path = &self.path;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .context(path, WHAT)?;
        let done = work(&SqliteDb { connection: &transaction, path, what: WHAT })?;
        transaction.commit().context(path, WHAT)?;
        Ok(done)
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
