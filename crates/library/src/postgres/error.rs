//! Errors of PostgreSQL, in words. Neither these nor their sources have the password.

use cutline_error::{Error, ErrorKind, Result};
use postgres::error::SqlState;

/// Adds what was done to which library.
pub(super) trait Context<T> {
    /// `what` continues "the library ADDRESS": "cannot be read".
    fn context(self, name: &str, what: &str) -> Result<T>;
}

impl<T> Context<T> for Result<T, postgres::Error> {
    fn context(self, name: &str, what: &str) -> Result<T> {
        self.map_err(|error| describe(error, name, what))
    }
}

fn describe(error: postgres::Error, name: &str, what: &str) -> Error {
    let state = error.code().cloned();
    let said = match error.as_db_error() {
        Some(said) => said.message().to_owned(),
        None => with_sources(&error),
    };
    let (kind, detail) = match state {
        Some(SqlState::DISK_FULL) => (
            ErrorKind::StorageFull,
            format!(
                "the disk of the library {name} is full, and nothing was stored; free space, then try again"
            ),
        ),
        Some(
            SqlState::LOCK_NOT_AVAILABLE
            | SqlState::T_R_DEADLOCK_DETECTED
            | SqlState::T_R_SERIALIZATION_FAILURE,
        ) => (
            ErrorKind::LibraryBusy,
            format!(
                "the library {name} is being written by another process; try again, or end that process"
            ),
        ),
        Some(SqlState::TOO_MANY_CONNECTIONS) => (
            ErrorKind::LibraryBusy,
            format!(
                "the library {name} {what} ({said}); try again, or raise max_connections of the server"
            ),
        ),
        Some(SqlState::QUERY_CANCELED) => (
            ErrorKind::InvalidParameter,
            "the search took too long; search for more or rarer words".to_owned(),
        ),
        Some(SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED) => (
            ErrorKind::Io,
            format!("the library {name} {what}: it is damaged ({said}); restore a backup"),
        ),
        Some(SqlState::READ_ONLY_SQL_TRANSACTION) => (
            ErrorKind::Io,
            format!("the library {name} {what} ({said}); name the server that may be written"),
        ),
        // No such user or database, a wrong password, missing rights; then all that a server does to
        // say that it stops.
        Some(state)
            if ["28", "3D", "3F", "42501", "57P", "53", "58"]
                .iter()
                .any(|class| state.code().starts_with(class)) =>
        {
            (
                ErrorKind::Io,
                format!(
                    "the library {name} {what} ({said}); check the address, and the rights, space and log \
                     of the server"
                ),
            )
        }
        Some(_) => (ErrorKind::Internal, format!("the library {name} {what} ({said})")),
        None => (
            ErrorKind::Io,
            format!(
                "the library {name} {what} ({said}); check that the server runs and can be reached, then \
                 see whether the last change was made"
            ),
        ),
    };
    Error::new(kind, detail).with_source(error)
}

/// An error with those behind it, in one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_said = inner.to_string();
        if !said.contains(&inner_said) {
            said += &format!(": {inner_said}");
        }
        source = inner.source();
    }
    said
}
