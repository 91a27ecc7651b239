//! Errors of SQLite, in words.

use std::path::Path;

use cutline_error::{Error, ErrorKind, Result};
use rusqlite::ErrorCode;

/// Adds what was done to which file.
pub(super) trait Context<T> {
    /// `what` continues "the library FILE": "cannot be read".
    fn context(self, path: &Path, what: &str) -> Result<T>;
}

impl<T> Context<T> for rusqlite::Result<T> {
    fn context(self, path: &Path, what: &str) -> Result<T> {
        self.map_err(|error| describe(error, path, what))
    }
}

fn describe(error: rusqlite::Error, path: &Path, what: &str) -> Error {
    let code = error.sqlite_error_code();
    let file = path.display();
    let (kind, detail) = match code {
        Some(ErrorCode::DiskFull) => (
            ErrorKind::StorageFull,
            format!(
                "the disk of the library {file} is full, and nothing was stored; free space, then try again"
            ),
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            ErrorKind::LibraryBusy,
            format!(
                "the library {file} is being written by another process; try again, or end that process"
            ),
        ),
        Some(ErrorCode::OperationInterrupted) => (
            ErrorKind::InvalidParameter,
            "the search took too long; search for more or rarer words".to_owned(),
        ),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => (
            ErrorKind::Io,
            format!(
                "the library {file} {what}: it is damaged or not a library ({error}); restore a backup, or \
                 name another file"
            ),
        ),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => (
            ErrorKind::Io,
            format!(
                "the library {file} {what} ({error}); check the permissions of the file and of its folder"
            ),
        ),
        Some(ErrorCode::SystemIoFailure) => (
            ErrorKind::Io,
            format!(
                "the library {file} {what} ({error}); check the disk, its free space and its limits"
            ),
        ),
        _ => (ErrorKind::Internal, format!("the library {file} {what} ({error})")),
    };
    Error::new(kind, detail).with_source(error)
}
