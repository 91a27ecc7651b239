//! The connection that writes.

use std::sync::Arc;

use cutline_error::{Error, Result};

use super::address::Address;
use super::db::Connection;
use crate::sql::Db;
use crate::sql::writer::Hand;

/// Waits until no other process writes; the end of the transaction lets the next one. So changes of a
/// library have one order, and a number that is larger was given later: who pages through photos, or
/// reads the features that are new, misses none.
pub(super) const LOCK: &str = "SELECT pg_advisory_xact_lock(7166571340)";

/// Settings of a connection that writes. Limits that the address has in its options hold.
pub(super) const SETUP: &str = "SET search_path = cutline; \
     SELECT set_config('lock_timeout', '60s', false) WHERE current_setting('lock_timeout') = '0'; \
     SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') = 'off';";

/// What is rewritten without deleted rows.
const TABLES: [&str; 15] = [
    "assets",
    "names",
    "authors",
    "runs",
    "revisions",
    "current",
    "labels",
    "asset_labels",
    "features",
    "thumbnails",
    "feedback",
    "words",
    "api_keys",
    "api_key_secrets",
    "usage_daily",
];

pub(super) struct PostgresHand {
    address: Arc<Address>,
    /// `None` after it was lost.
    connection: Option<Connection>,
}

impl PostgresHand {
    pub(super) fn new(address: Arc<Address>, connection: Connection) -> Self {
        Self { address, connection: Some(connection) }
    }

    /// The connection, in a transaction, as the only one that writes.
    fn begin(&mut self) -> Result<&Connection> {
        let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {LOCK}");
        if let Some(connection) = self.connection.take() {
            match connection.batch(&begin) {
                Ok(()) => return Ok(self.connection.insert(connection)),
                // The server was restarted. Nothing was changed yet, so a new connection may try.
                Err(_) if connection.is_closed() => {}
                Err(error) => {
                    let _ = connection.batch("ROLLBACK");
                    self.connection = Some(connection);
                    return Err(error);
                }
            }
        }
        let connection = Connection::open(&self.address, WHAT, SETUP)?;
        connection.batch(&begin)?;
        Ok(self.connection.insert(connection))
    }
}

pub(super) const WHAT: &str = "cannot be written";

impl Hand for PostgresHand {
    fn transaction<T>(&mut self, work: impl FnOnce(&dyn Db) -> Result<T>) -> Result<T> {
        let connection = self.begin()?;
        match work(connection) {
            Ok(done) => connection.batch("COMMIT").map(|()| done),
            Err(error) => {
                let _ = connection.batch("ROLLBACK");
                Err(error)
            }
        }
    }

    fn savepoint<T>(db: &dyn Db, work: impl FnOnce(&dyn Db) -> Result<T>) -> Result<Result<T>> {
        db.execute("SAVEPOINT call", &[])?;
        let result = work(db);
        if let Err(error) = &result
            && db.execute("ROLLBACK TO call", &[]).is_err()
        {
            return Err(Error::clone(error));
        }
        db.execute("RELEASE call", &[])?;
        Ok(result)
    }

    /// The server overwrites deleted rows when it vacuums.
    fn forget(&mut self) -> Result<()> {
        Ok(())
    }

    fn compact(&mut self) -> Result<()> {
        self.begin()?.batch("COMMIT")?;
        let connection = self.connection.as_ref();
        let connection = connection.ok_or_else(|| Error::internal("a connection is lost"))?;
        TABLES
            .iter()
            .try_for_each(|table| connection.batch(&format!("VACUUM (FULL, ANALYZE) {table}")))
    }

    fn idle(&mut self) -> bool {
        true
    }

    fn close(&mut self) {}
}
