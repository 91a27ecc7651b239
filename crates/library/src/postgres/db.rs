//! A connection, and its statements.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use cutline_error::{Error, Result};
use postgres::fallible_iterator::FallibleIterator as _;
use postgres::types::private::BytesMut;
use postgres::types::{IsNull, ToSql, Type};
use postgres::{Client, Statement};

use super::address::Address;
use super::error::Context;
use super::many::{self, Many};
use super::words;
use crate::query::{Expression, Term};
use crate::sql::derived::Words;
use crate::sql::{Cell, Db, Matching, Reindexed, Row, Value, damaged};

/// Prepared statements of a connection. Searches differ in their filters.
const STATEMENTS: usize = 256;
/// Photos whose words are written by one statement.
const TOGETHER: usize = 50;

pub(super) struct Connection {
    client: RefCell<Client>,
    statements: RefCell<HashMap<String, Statement>>,
    /// What is not written yet, while a call makes many changes.
    many: RefCell<Option<Many>>,
    address: Arc<Address>,
    /// What fails if a statement does: "cannot be read".
    what: &'static str,
}

impl Connection {
    /// Connects. Like all methods, not to be called by asynchronous code; see [`super::apart`].
    pub(super) fn open(address: &Arc<Address>, what: &'static str, setup: &str) -> Result<Self> {
        let mut client = address.connect().context(&address.name, "cannot be opened")?;
        client.batch_execute(setup).context(&address.name, "cannot be opened")?;
        Ok(Self {
            client: RefCell::new(client),
            statements: RefCell::default(),
            many: RefCell::default(),
            address: Arc::clone(address),
            what,
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.try_borrow().is_ok_and(|client| client.is_closed())
    }

    /// Runs statements without values.
    pub(super) fn batch(&self, sql: &str) -> Result<()> {
        self.with(|client, _| client.batch_execute(sql))
    }

    fn with<T>(
        &self,
        work: impl FnOnce(
            &mut Client,
            &mut HashMap<String, Statement>,
        ) -> std::result::Result<T, postgres::Error>,
    ) -> Result<T> {
        let nested = |_| Error::internal("a statement began inside of another");
        let mut client = self.client.try_borrow_mut().map_err(nested)?;
        let mut statements = self.statements.borrow_mut();
        work(&mut client, &mut statements).context(&self.address.name, self.what)
    }
}

/// The statement, prepared.
fn prepared(
    client: &mut Client,
    statements: &mut HashMap<String, Statement>,
    sql: &str,
    values: &[Value<'_>],
) -> std::result::Result<Statement, postgres::Error> {
    if let Some(statement) = statements.get(sql) {
        return Ok(statement.clone());
    }
    let types: Vec<Type> = values.iter().map(type_of).collect();
    let statement = client.prepare_typed(&numbered(sql), &types)?;
    if statements.len() >= STATEMENTS {
        statements.clear();
    }
    statements.insert(sql.to_owned(), statement.clone());
    Ok(statement)
}

/// A statement with `$1` for `?1`, and for the first `?`.
fn numbered(sql: &str) -> String {
    let mut parts = sql.split('?');
    let mut numbered = parts.next().unwrap_or_default().to_owned();
    for (index, part) in parts.enumerate() {
        numbered.push('$');
        if !part.starts_with(|c: char| c.is_ascii_digit()) {
            let _ = write!(numbered, "{}", index + 1);
        }
        numbered += part;
    }
    numbered
}

fn type_of(value: &Value<'_>) -> Type {
    match value {
        Value::Integer(_) => Type::INT8,
        Value::Real(_) => Type::FLOAT8,
        Value::Text(_) => Type::TEXT,
        Value::Blob(_) => Type::BYTEA,
        Value::Bool(_) => Type::BOOL,
    }
}

impl ToSql for Value<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Integer(value) => value.to_sql(ty, out),
            Self::Real(value) => value.to_sql(ty, out),
            // The only character that its texts cannot have.
            Self::Text(Some(text)) if text.contains('\0') => {
                text.replace('\0', "\u{fffd}").to_sql(ty, out)
            }
            Self::Text(value) => value.as_deref().to_sql(ty, out),
            Self::Blob(value) => value.as_deref().to_sql(ty, out),
            Self::Bool(value) => value.to_sql(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    postgres::types::to_sql_checked!();
}

struct PostgresRow(postgres::Row);

impl Row for PostgresRow {
    fn cell(&self, column: usize) -> Result<Cell<'_>> {
        let Self(row) = self;
        let unknown = || damaged("a column of another type");
        let ty = row.columns().get(column).ok_or_else(unknown)?.type_().clone();
        let read = || {
            Ok(match ty {
                Type::INT8 => row.try_get::<_, Option<i64>>(column)?.map(Cell::Integer),
                Type::INT4 => {
                    row.try_get::<_, Option<i32>>(column)?.map(|value| Cell::Integer(value.into()))
                }
                Type::INT2 => {
                    row.try_get::<_, Option<i16>>(column)?.map(|value| Cell::Integer(value.into()))
                }
                Type::FLOAT8 => row.try_get::<_, Option<f64>>(column)?.map(Cell::Real),
                Type::BOOL => {
                    row.try_get::<_, Option<bool>>(column)?.map(|value| Cell::Integer(value.into()))
                }
                Type::BYTEA => row.try_get::<_, Option<&[u8]>>(column)?.map(Cell::Blob),
                _ => row.try_get::<_, Option<&str>>(column)?.map(Cell::Text),
            })
        };
        let cell: std::result::Result<Option<Cell<'_>>, postgres::Error> = read();
        cell.map(|cell| cell.unwrap_or(Cell::Null)).map_err(|_| unknown())
    }
}

impl Connection {
    /// Writes what waits.
    fn write_waiting(&self) -> Result<()> {
        let waiting = self.many.borrow_mut().as_mut().map(Many::take);
        let mut waiting = waiting.unwrap_or_default().into_iter();
        waiting.try_for_each(|(sql, values)| self.run(&sql, &values).map(drop))
    }

    fn run(&self, sql: &str, values: &[Value<'_>]) -> Result<u64> {
        self.with(|client, statements| {
            let statement = prepared(client, statements, sql, values)?;
            let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
            client.execute(&statement, &values)
        })
    }

    /// Keeps a row for later, if many are written together.
    fn wait(&self, sql: &str, values: &[Value<'_>]) -> Result<bool> {
        let row = || values.iter().map(Value::owned).collect();
        let full = self.many.borrow_mut().as_mut().map(|many| many.add(sql.to_owned(), row()));
        if full == Some(true) {
            self.write_waiting()?;
        }
        Ok(full.is_some())
    }

    /// The number of the next row of `table`. Nobody else writes, so numbers that are taken before are
    /// those that the rows would get.
    fn number(&self, table: &str) -> Result<i64> {
        let next = || self.many.borrow_mut().as_mut().and_then(|many| many.number(table));
        if let Some(number) = next() {
            return Ok(number);
        }
        let numbers = many::NUMBERS;
        let sql = format!(
            "SELECT nextval(pg_get_serial_sequence('cutline.{table}', 'id')) \
             FROM generate_series(1, {numbers})"
        );
        let read = |row: &dyn Row| row.get(0);
        let numbers = (self as &dyn Db).all(&sql, &[], read)?;
        if let Some(many) = self.many.borrow_mut().as_mut() {
            many.put_numbers(table, numbers);
        }
        next().ok_or_else(|| damaged("a table without numbers"))
    }
}

impl Db for Connection {
    fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64> {
        self.write_waiting()?;
        self.run(sql, values)
    }

    fn insert(&self, sql: &str, values: &[Value<'_>]) -> Result<i64> {
        let together = self.many.borrow().is_some();
        if let Some(numbered) = many::with_number(sql, values.len()).filter(|_| together) {
            let number = self.number(many::table(sql))?;
            let values = [values, &[number.into()]].concat();
            self.wait(&numbered, &values)?;
            return Ok(number);
        }
        (self as &dyn Db).value(&format!("{sql} RETURNING id"), values)
    }

    fn begin_many(&self) -> Result<()> {
        *self.many.borrow_mut() = Some(Many::default());
        Ok(())
    }

    fn end_many(&self, keep: bool) -> Result<()> {
        let written = if keep { self.write_waiting() } else { Ok(()) };
        *self.many.borrow_mut() = None;
        written
    }

    fn add(&self, sql: &str, values: &[Value<'_>]) -> Result<()> {
        if self.wait(sql, values)? {
            return Ok(());
        }
        self.run(sql, values).map(drop)
    }

    fn each(
        &self,
        sql: &str,
        values: &[Value<'_>],
        row: &mut dyn FnMut(&dyn Row) -> Result<()>,
    ) -> Result<()> {
        self.write_waiting()?;
        self.with(|client, statements| {
            let statement = prepared(client, statements, sql, values)?;
            // Not all at once: there may be a gigabyte of them.
            let mut rows = client.query_raw(&statement, values.iter())?;
            while let Some(next) = rows.next()? {
                if let Err(error) = row(&PostgresRow(next)) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        })?
    }

    fn index(&self, changes: &[Reindexed]) -> Result<()> {
        // The last words of each photo. Those of photos that were removed have left with them.
        let last: BTreeMap<i64, Option<&Words>> =
            changes.iter().map(|(asset, _, after)| (*asset, after.as_ref())).collect();
        let rows: Vec<(i64, &Words)> =
            last.into_iter().filter_map(|(asset, after)| Some((asset, after?))).collect();
        for rows in rows.chunks(TOGETHER) {
            let values: Vec<Value<'_>> = rows
                .iter()
                .flat_map(|(asset, words)| [(*asset).into(), words::vector(words).into()])
                .collect();
            let places = vec!["(?, CAST(? AS tsvector))"; rows.len()].join(", ");
            let sql = format!(
                "INSERT INTO words(asset_id, words) VALUES{places} \
                 ON CONFLICT(asset_id) DO UPDATE SET words = excluded.words"
            );
            self.execute(&sql, &values)?;
        }
        Ok(())
    }

    fn matching(&self, expression: &Expression) -> Option<Matching> {
        Some(Matching {
            from: "FROM words w",
            from_assets: "FROM words w JOIN assets s ON s.id = w.asset_id",
            id: "w.asset_id",
            condition: "w.words @@ CAST(? AS tsquery)",
            value: words::query(expression)?.into(),
            texts: "(SELECT concat_ws(chr(31), coalesce(d.caption, ''), coalesce(d.alt_text, ''), \
                 coalesce(d.tags, ''), coalesce(d.names, '')) FROM documents d WHERE d.id = w.asset_id)",
        })
    }

    fn lacking(&self, none: &[Term]) -> Option<(&'static str, Value<'static>)> {
        let condition = "NOT EXISTS(SELECT 1 FROM words w WHERE w.asset_id = s.id \
             AND w.words @@ CAST(? AS tsquery))";
        Some((condition, words::any_of(none)?.into()))
    }

    fn mark(&self, expression: &Expression, texts: String) -> String {
        words::mark(expression, &texts)
    }
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn values_get_numbers() {
        assert_eq!(numbered("a = ? AND b IN (?, ?)"), "a = $1 AND b IN ($2, $3)");
        assert_eq!(numbered("?2, ?1, ?12"), "$2, $1, $12");
        assert_eq!(numbered("SELECT 1"), "SELECT 1");
    }
}
