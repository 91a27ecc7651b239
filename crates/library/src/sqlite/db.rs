//! Statements of SQLite.

use std::path::Path;

use cutline_error::Result;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql, params_from_iter};

use super::error::Context;
use super::words;
use crate::query::{Expression, Term};
use crate::sql::value::values;
use crate::sql::{Cell, Db, Matching, Reindexed, Row, Value};

/// A connection to the file `path`.
#[derive(Clone, Copy)]
pub(super) struct SqliteDb<'a> {
    pub(super) connection: &'a Connection,
    pub(super) path: &'a Path,
    /// What fails if a statement does: "cannot be read".
    pub(super) what: &'static str,
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let value = match self {
            Self::Integer(value) => value.map(ValueRef::Integer),
            Self::Real(value) => value.map(ValueRef::Real),
            Self::Text(value) => value.as_ref().map(|text| ValueRef::Text(text.as_bytes())),
            Self::Blob(value) => value.as_deref().map(ValueRef::Blob),
            Self::Bool(value) => Some(ValueRef::Integer((*value).into())),
        };
        Ok(ToSqlOutput::Borrowed(value.unwrap_or(ValueRef::Null)))
    }
}

struct SqliteRow<'a, 'b> {
    row: &'a rusqlite::Row<'b>,
    db: &'a SqliteDb<'a>,
}

impl Row for SqliteRow<'_, '_> {
    fn cell(&self, column: usize) -> Result<Cell<'_>> {
        let read = || {
            Ok(match self.row.get_ref(column)? {
                ValueRef::Null => Cell::Null,
                ValueRef::Integer(value) => Cell::Integer(value),
                ValueRef::Real(value) => Cell::Real(value),
                ValueRef::Text(text) => {
                    Cell::Text(std::str::from_utf8(text).map_err(rusqlite::Error::from)?)
                }
                ValueRef::Blob(value) => Cell::Blob(value),
            })
        };
        read().context(self.db.path, self.db.what)
    }
}

impl SqliteDb<'_> {
    fn step(
        &self,
        sql: &str,
        values: &[Value<'_>],
        each: &mut dyn FnMut(&dyn Row) -> Result<()>,
    ) -> rusqlite::Result<Result<()>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            if let Err(error) = each(&SqliteRow { row, db: self }) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }
}

impl Db for SqliteDb<'_> {
    fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64> {
        let execute = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.execute(params_from_iter(values)).map(|changed| changed as u64)
        };
        execute().context(self.path, self.what)
    }

    fn insert(&self, sql: &str, values: &[Value<'_>]) -> Result<i64> {
        self.execute(sql, values)?;
        Ok(self.connection.last_insert_rowid())
    }

    fn each(
        &self,
        sql: &str,
        values: &[Value<'_>],
        row: &mut dyn FnMut(&dyn Row) -> Result<()>,
    ) -> Result<()> {
        self.step(sql, values, row).context(self.path, self.what)?
    }

    fn index(&self, changes: &[Reindexed]) -> Result<()> {
        for (asset, before, after) in changes {
            for (sql, words) in [(words::DELETE, before), (words::INSERT, after)] {
                if let Some([caption, alt_text, tags, names]) = words {
                    self.execute(sql, values![*asset, caption, alt_text, tags, names])?;
                }
            }
        }
        Ok(())
    }

    fn matching(&self, expression: &Expression) -> Option<Matching> {
        words::matching(expression)
    }

    fn lacking(&self, none: &[Term]) -> Option<(&'static str, Value<'static>)> {
        words::lacking(none)
    }

    /// The index has marked them.
    fn mark(&self, _: &Expression, texts: String) -> String {
        texts
    }
}
