//! Versions of the schema. Files are only ever brought forward.

use std::fs;
use std::path::{Path, PathBuf};

use cutline_error::{Error, ErrorKind, Result};
use rusqlite::{Connection, TransactionBehavior};

use super::error::Context;
use super::maintain;

/// `ctln`, in the header of the file: it is a library.
const APPLICATION_ID: i32 = 0x6374_6c6e;

/// The steps from each version to the next. Steps that were released never change.
pub(super) const STEPS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("keys.sql"),
    include_str!("prompts.sql"),
    include_str!("vocabularies.sql"),
];

/// The version that this program writes.
pub(super) fn newest() -> u32 {
    u32::try_from(STEPS.len()).unwrap_or(u32::MAX)
}

/// Brings the file to the version of `steps`. A library with content is copied first, and the steps are
/// tried on the copy.
///
/// # Errors
/// [`Io`](ErrorKind::Io): the file is not a library, or is newer than `steps`.
pub(super) fn migrate(connection: &mut Connection, path: &Path, steps: &[&str]) -> Result<()> {
    let Some(found) = version(connection, path, steps)? else { return Ok(()) };
    if found > 0 {
        let copy = copy_path(path, found);
        // Left over from an attempt that was interrupted.
        let _ = fs::remove_file(&copy);
        let tried = maintain::backup(connection, &copy).and_then(|()| {
            let mut trial = super::connect(&copy, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            bring_forward(&mut trial, &copy, steps)?;
            let problems = maintain::check(&trial, &copy)?.problems;
            match problems.first() {
                None => Ok(()),
                Some(problem) => {
                    Err(Error::new(ErrorKind::Io, format!("a check of it finds: {problem}")))
                }
            }
        });
        let _ = fs::remove_file(&copy);
        tried.map_err(|error| {
            Error::new(
                ErrorKind::Io,
                format!(
                    "the library {} cannot be brought to the version of this program, as a trial on a copy \
                     showed, and is unchanged ({error}); use the program that wrote it, or make room for a \
                     copy beside it",
                    path.display()
                ),
            )
        })?;
    }
    bring_forward(connection, path, steps)
}

/// The version of the file, if it needs steps.
fn version(connection: &Connection, path: &Path, steps: &[&str]) -> Result<Option<usize>> {
    let read = || {
        let number =
            |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let tables = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
        Ok((number("application_id")?, number("user_version")?, tables))
    };
    let (application, version, tables) = read().context(path, "cannot be opened")?;
    let file = path.display();
    if application != i64::from(APPLICATION_ID) && (tables > 0 || version != 0) {
        return Err(Error::new(
            ErrorKind::Io,
            format!("{file} is a database of another program; name another file for the library"),
        ));
    }
    let found = usize::try_from(version).unwrap_or(usize::MAX);
    if found > steps.len() {
        return Err(Error::new(
            ErrorKind::Io,
            format!(
                "the library {file} has version {version} of the schema, and this program knows versions up \
                 to {}; update the program",
                steps.len()
            ),
        ));
    }
    Ok((found < steps.len()).then_some(found))
}

/// Makes all steps in one transaction. Another process may have made them meanwhile.
fn bring_forward(connection: &mut Connection, path: &Path, steps: &[&str]) -> Result<()> {
    let mut run = || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let made = usize::try_from(found).unwrap_or(usize::MAX);
        for step in steps.iter().skip(made) {
            transaction.execute_batch(step)?;
        }
        if made < steps.len() {
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(
                None,
                "user_version",
                i64::try_from(steps.len()).unwrap_or(i64::MAX),
            )?;
        }
        transaction.commit()
    };
    run().context(path, "cannot be brought to the version of this program")
}

fn copy_path(path: &Path, version: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".version-{version}.tmp"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(path: &Path, sql: &str) -> rusqlite::Result<i64> {
        Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0))
    }

    #[test]
    fn files_are_brought_forward_and_never_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let mut connection = Connection::open(&path).unwrap();
        migrate(&mut connection, &path, STEPS).unwrap();
        let step = "ALTER TABLE assets ADD COLUMN stars INTEGER; UPDATE assets SET stars = 1;";
        let steps = [STEPS, &[step]].concat();
        let photo = "INSERT INTO assets(hash, at, added_at, updated_at) VALUES(zeroblob(32), 0, 0, 0); \
             INSERT INTO words(rowid, caption, alt_text, tags, names) SELECT * FROM documents;";
        connection.execute_batch(photo).unwrap();
        migrate(&mut connection, &path, &steps).unwrap();
        migrate(&mut connection, &path, &steps).unwrap();
        assert_eq!(number(&path, "SELECT sum(stars) FROM assets"), Ok(1));
        let error = migrate(&mut connection, &path, STEPS).unwrap_err();
        assert!(error.detail().contains("update the program"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the copy is removed");
    }

    #[test]
    fn a_step_that_fails_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let mut connection = Connection::open(&path).unwrap();
        migrate(&mut connection, &path, STEPS).unwrap();
        let before = fs::read(&path).unwrap();
        // The first statement of the next version works, the other does not.
        let steps = [STEPS, &["CREATE TABLE more(id); INSERT INTO nothing VALUES(1);"]].concat();
        let error = migrate(&mut connection, &path, &steps).unwrap_err();
        assert!(error.detail().contains("is unchanged"), "{error}");
        drop(connection);
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_database_of_another_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let mut connection = Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE photos(id)").unwrap();
        let error = migrate(&mut connection, &path, STEPS).unwrap_err();
        assert!(error.detail().contains("another program"), "{error}");
        assert!(number(&path, "SELECT count(*) FROM assets").is_err());
        fs::write(folder.path().join("b.db"), "this is not a database, but a text").unwrap();
        let error = super::super::SqliteStore::open(&folder.path().join("b.db")).unwrap_err();
        assert!(error.detail().contains("not a library"), "{error}");
    }
}
