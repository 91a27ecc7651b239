//! Versions of the schema. Libraries are only ever brought forward.

use cutline_error::{Error, ErrorKind, Result};

use super::db::Connection;
use super::hand::LOCK;
use crate::sql::value::values;
use crate::sql::{Db, check};

/// The steps from each version to the next. Steps that were released never change.
pub(super) const STEPS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("keys.sql"),
    include_str!("prompts.sql"),
    include_str!("vocabularies.sql"),
];

/// Older servers lack what the statements need.
const OLDEST: i64 = 120_000;

/// The version that this program writes.
pub(super) fn newest() -> u32 {
    u32::try_from(STEPS.len()).unwrap_or(u32::MAX)
}

/// Whether there is a library, of any version.
pub(super) fn exists(db: &dyn Db) -> Result<bool> {
    db.value("SELECT to_regclass('cutline.library') IS NOT NULL", &[])
}

/// Brings the library to the version of `steps`, in one transaction, which ends with a check: it is a
/// trial and the change at once.
///
/// # Errors
/// [`Io`](ErrorKind::Io): the database is not for a library, or is newer than `steps`.
pub(super) fn migrate(db: &Connection, name: &str, steps: &[&str]) -> Result<()> {
    if needed(db, name, steps)?.is_none() {
        return Ok(());
    }
    db.batch("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")?;
    let made = bring_forward(db, name, steps);
    let end = if made.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = db.batch(end);
    made.and(ended)
}

/// The version of the library, if it needs steps; 0 if there is none.
fn needed(db: &dyn Db, name: &str, steps: &[&str]) -> Result<Option<usize>> {
    let unusable = |detail: String| Err(Error::new(ErrorKind::Io, detail));
    if !exists(db)? {
        let number = "SELECT CAST(current_setting('server_version_num') AS bigint)";
        if db.value::<i64>(number, &[])? < OLDEST {
            return unusable(format!(
                "the library {name} cannot be opened: the server is older than PostgreSQL 12; update it"
            ));
        }
        if db.value::<String>("SELECT current_setting('server_encoding')", &[])? != "UTF8" {
            return unusable(format!(
                "the library {name} cannot be opened: the database does not keep UTF-8; make one with \
                 CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            ));
        }
        let tables = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = 'cutline'";
        if db.value::<i64>(tables, &[])? > 0 {
            return unusable(format!(
                "the schema cutline of {name} belongs to another program; name another database for the \
                 library"
            ));
        }
        return Ok(Some(0));
    }
    let version: i64 = db.value("SELECT version FROM cutline.library", &[])?;
    let found = usize::try_from(version).unwrap_or(usize::MAX);
    if found > steps.len() {
        return unusable(format!(
            "the library {name} has version {version} of the schema, and this program knows versions up to \
             {}; update the program",
            steps.len()
        ));
    }
    Ok((found < steps.len()).then_some(found))
}

/// Makes all steps. Another process may have made them meanwhile.
fn bring_forward(db: &Connection, name: &str, steps: &[&str]) -> Result<()> {
    db.batch(LOCK)?;
    let Some(made) = needed(db, name, steps)? else { return Ok(()) };
    if made == 0 {
        db.batch(
            "CREATE SCHEMA IF NOT EXISTS cutline; \
             CREATE TABLE cutline.library(version BIGINT NOT NULL); \
             INSERT INTO cutline.library VALUES(0);",
        )?;
    }
    let tried = steps.iter().skip(made).try_for_each(|step| db.batch(step)).and_then(|()| {
        let version = "UPDATE cutline.library SET version = ?";
        db.execute(version, values![steps.len()])?;
        match check::rules(db, Err)?.first() {
            None => Ok(()),
            Some(problem) => Err(Error::new(ErrorKind::Io, format!("a check finds: {problem}"))),
        }
    });
    tried.map_err(|error| {
        Error::new(
            ErrorKind::Io,
            format!(
                "the library {name} cannot be brought to the version of this program, and is unchanged \
                 ({error}); use the program that wrote it, or check the rights of the user"
            ),
        )
    })
}
