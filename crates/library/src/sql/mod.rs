//! What the stores over SQL have in common: everything but the connection, the schema and the index of
//! words. Their statements are the same, in the language that SQLite and PostgreSQL share; values are
//! `?`, or `?1` if one is needed twice.

pub(crate) mod change;
pub(crate) mod check;
pub(crate) mod derived;
pub(crate) mod find;
pub(crate) mod keys;
pub(crate) mod prompts;
pub(crate) mod read;
pub(crate) mod reads;
pub(crate) mod report;
pub(crate) mod similar;
pub(crate) mod texts;
pub(crate) mod value;
pub(crate) mod vocabularies;
pub(crate) mod writer;

use cutline_error::{Error, ErrorKind, Result};

use self::derived::Words;
pub(crate) use self::value::{Cell, Column, Value};
use crate::query::{Expression, Term};

/// A connection in a transaction.
pub(crate) trait Db {
    /// Runs a statement. Returns how many rows it changed.
    fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64>;

    /// Adds a row to a table with numbered rows. Returns its number.
    fn insert(&self, sql: &str, values: &[Value<'_>]) -> Result<i64>;

    /// Many rows follow. Until [`end_many`](Self::end_many), those of [`insert`](Self::insert) and
    /// [`add`](Self::add) may be written later and together, but before anything else is done.
    fn begin_many(&self) -> Result<()> {
        Ok(())
    }

    /// Writes what was not written yet, or forgets it, because all of the call is taken back.
    fn end_many(&self, _keep: bool) -> Result<()> {
        Ok(())
    }

    /// Adds a row whose number nobody needs.
    fn add(&self, sql: &str, values: &[Value<'_>]) -> Result<()> {
        self.execute(sql, values).map(drop)
    }

    /// Runs a query and gives its rows to `row`, which may not ask the database itself.
    fn each(
        &self,
        sql: &str,
        values: &[Value<'_>],
        row: &mut dyn FnMut(&dyn Row) -> Result<()>,
    ) -> Result<()>;

    /// Replaces words of photos in the index, in this order.
    fn index(&self, changes: &[Reindexed]) -> Result<()>;

    /// The condition that a photo has the words of a query; `None` if it asks for no words.
    fn matching(&self, expression: &Expression) -> Option<Matching>;

    /// The condition that the photo `s` has none of the words; `None` if they are no words.
    fn lacking(&self, none: &[Term]) -> Option<(&'static str, Value<'static>)>;

    /// Marks the words of a query in the texts that [`Matching::texts`] has read.
    fn mark(&self, expression: &Expression, texts: String) -> String;
}

/// A photo with its words before and after a change; `None` if it is not in the library.
pub(crate) type Reindexed = (i64, Option<Words>, Option<Words>);

/// How to search the index of words.
pub(crate) struct Matching {
    /// `FROM …`
    pub(crate) from: &'static str,
    /// The same, with the photo as `s`.
    pub(crate) from_assets: &'static str,
    /// The number of the photo.
    pub(crate) id: &'static str,
    /// The condition, with one value.
    pub(crate) condition: &'static str,
    pub(crate) value: Value<'static>,
    /// Captions, alternative texts, tags and names, separated by a character that no text has.
    pub(crate) texts: &'static str,
}

/// A row of a result.
pub(crate) trait Row {
    fn cell(&self, column: usize) -> Result<Cell<'_>>;
}

impl dyn Row + '_ {
    /// The value of a column.
    pub(crate) fn get<T: Column>(&self, column: usize) -> Result<T> {
        T::read(self.cell(column)?).ok_or_else(|| damaged("a value of another type"))
    }
}

impl dyn Db + '_ {
    /// All rows of a query.
    pub(crate) fn all<T>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        mut read: impl FnMut(&dyn Row) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        self.each(sql, values, &mut |row| {
            all.push(read(row)?);
            Ok(())
        })?;
        Ok(all)
    }

    /// The last row of a query, which has one or none.
    pub(crate) fn first<T>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        mut read: impl FnMut(&dyn Row) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut found = None;
        self.each(sql, values, &mut |row| {
            found = Some(read(row)?);
            Ok(())
        })?;
        Ok(found)
    }

    /// The first column of a query that has one row.
    pub(crate) fn value<T: Column>(&self, sql: &str, values: &[Value<'_>]) -> Result<T> {
        let found = self.first(sql, values, |row| row.get(0))?;
        found.ok_or_else(|| damaged("no row where one must be"))
    }
}

/// The row, enum or number in a database is not one that this program writes.
pub(crate) fn damaged(what: &str) -> Error {
    Error::new(
        ErrorKind::Io,
        format!(
            "the library has {what}: it is damaged; run cutline library check, and restore a backup"
        ),
    )
}
