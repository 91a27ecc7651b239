//! Checks and copies.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use cutline_error::{Error, ErrorKind, Result};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode};

use super::db::SqliteDb;
use super::error::Context;
use crate::sql::check::{self, LISTED};
use crate::store::CheckReport;

/// Reads everything and looks for damage.
pub(super) fn check(db: &Connection, path: &Path) -> Result<CheckReport> {
    let what = "cannot be checked";
    let mut problems = Vec::new();
    let mut list = |problem: String| {
        if problems.len() < LISTED {
            problems.push(problem);
        }
    };
    // A damaged file may break any of these; that is a finding and not a failure.
    let damage = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) => {
            Ok(error.to_string())
        }
        _ => Err(error),
    };
    let mut texts = |sql: &str| -> rusqlite::Result<()> {
        let mut read = db.prepare(sql)?;
        let mut rows = read.query([])?;
        while let Some(row) = rows.next()? {
            let text: String = row.get(0)?;
            if text != "ok" {
                list(text);
            }
        }
        Ok(())
    };
    let integrity =
        texts("PRAGMA integrity_check(100)").or_else(|error| damage(error).map(&mut list));
    integrity.context(path, what)?;
    let mut foreign = || -> rusqlite::Result<()> {
        let mut read = db.prepare(
            "SELECT \"table\", \"rowid\", \"parent\" FROM pragma_foreign_key_check LIMIT 100",
        )?;
        let mut rows = read.query([])?;
        while let Some(row) = rows.next()? {
            let (table, id, parent): (String, Option<i64>, String) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            list(format!(
                "row {} of {table} belongs to a row of {parent} that is missing",
                id.unwrap_or(0)
            ));
        }
        Ok(())
    };
    foreign().or_else(|error| damage(error).map(&mut list)).context(path, what)?;
    let shared = SqliteDb { connection: db, path, what };
    let is_damage = |error: Error| match error.kind() {
        // A damaged file, or one that lacks a table.
        ErrorKind::Io | ErrorKind::Internal => Ok(error.to_string()),
        _ => Err(error),
    };
    check::rules(&shared, is_damage)?.into_iter().for_each(&mut list);
    // Compares the index with the words that it was made of.
    let index = "INSERT INTO words(words, rank) VALUES('integrity-check', 1)";
    match db.execute_batch(index) {
        Ok(()) => {}
        Err(error) => list(format!("the index of words: {}", damage(error).context(path, what)?)),
    }
    let assets = db.query_row("SELECT count(*) FROM assets", [], |row| row.get(0));
    let assets = assets.or_else(|error| damage(error).map(|_| 0)).context(path, what)?;
    Ok(CheckReport { assets, problems })
}

/// Copies the library as it is now. Who writes meanwhile does not wait.
pub(super) fn backup(source: &Connection, path: &Path) -> Result<()> {
    let failed = |reason: &dyn std::fmt::Display| {
        let file = path.display();
        Error::new(
            ErrorKind::Io,
            format!(
                "the copy {file} cannot be written ({reason}); check the folder and its free space"
            ),
        )
    };
    if path.exists() {
        return Err(Error::new(
            ErrorKind::Io,
            format!("{} exists already; move it away, or name another file", path.display()),
        ));
    }
    let part = {
        let mut name = path.as_os_str().to_owned();
        name.push(".part");
        std::path::PathBuf::from(name)
    };
    let copied = copy(source, &part).and_then(|()| {
        File::open(&part)?.sync_all()?;
        fs::rename(&part, path)?;
        sync_folder(path)
    });
    copied.map_err(|error| {
        let _ = fs::remove_file(&part);
        failed(&error)
    })
}

fn copy(source: &Connection, part: &Path) -> io::Result<()> {
    let _ = fs::remove_file(part);
    let mut copy = Connection::open(part).map_err(io::Error::other)?;
    // With a transaction of its own, the copy is of one moment, and changes do not begin it again.
    let snapshot = source.unchecked_transaction().map_err(io::Error::other)?;
    let one = "SELECT count(*) FROM sqlite_schema";
    snapshot.query_row(one, [], |_| Ok(())).map_err(io::Error::other)?;
    let backup = Backup::new(&snapshot, &mut copy).map_err(io::Error::other)?;
    loop {
        match backup.step(4096).map_err(io::Error::other)? {
            StepResult::Done => break,
            StepResult::More => {}
            _ => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
    drop(backup);
    copy.close().map_err(|(_, error)| io::Error::other(error))
}

/// Makes the name of a new file survive a crash.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) => {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder)?.sync_all()
        }
        _ => Ok(()),
    }
}
