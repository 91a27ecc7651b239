//! Rows of a call with many changes, which are written together: each statement takes as long as it takes
//! to reach the server and come back.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;

use crate::sql::Value;

/// Rows that wait at most.
const WAITING: usize = 4000;
/// Rows of one statement: so many or, at the end, fewer. Few sizes, because each is a statement of its own.
const SIZES: [usize; 3] = [100, 10, 1];
/// Numbers that are taken from the server together.
pub(super) const NUMBERS: usize = 500;

/// What waits, and numbers for further rows.
#[derive(Debug, Default)]
pub(super) struct Many {
    /// Rows by their statements.
    rows: Vec<(String, Vec<Vec<Value<'static>>>)>,
    waiting: usize,
    /// Numbers by table.
    numbers: HashMap<String, VecDeque<i64>>,
}

impl Many {
    /// Takes a row. Returns whether it is time to write all.
    pub(super) fn add(&mut self, sql: String, row: Vec<Value<'static>>) -> bool {
        self.waiting += 1;
        match self.rows.iter_mut().find(|(other, _)| *other == sql) {
            Some((_, rows)) => rows.push(row),
            None => self.rows.push((sql, vec![row])),
        }
        self.waiting >= WAITING
    }

    /// A number for a row of `table`; `None` if more must be taken from the server.
    pub(super) fn number(&mut self, table: &str) -> Option<i64> {
        self.numbers.get_mut(table)?.pop_front()
    }

    pub(super) fn put_numbers(&mut self, table: &str, numbers: Vec<i64>) {
        self.numbers.insert(table.to_owned(), numbers.into());
    }

    /// The statements that write all that waits, with their values.
    pub(super) fn take(&mut self) -> Vec<(String, Vec<Value<'static>>)> {
        self.waiting = 0;
        self.rows.sort_by_key(|(sql, _)| rank(table(sql)));
        let mut statements = Vec::new();
        for (sql, rows) in &mut self.rows {
            let mut rows = std::mem::take(rows).into_iter().peekable();
            while rows.peek().is_some() {
                let size = SIZES.into_iter().find(|size| rows.len() >= *size).unwrap_or(1);
                let some: Vec<Vec<Value<'static>>> = rows.by_ref().take(size).collect();
                statements.push((repeated(sql, some.len()), some.concat()));
            }
        }
        statements
    }
}

/// The order of tables: rows that others refer to come before them.
fn rank(table: &str) -> usize {
    match table {
        "authors" | "labels" | "runs" | "spaces" => 0,
        "assets" => 1,
        "revisions" => 2,
        _ => 3,
    }
}

/// The table of an insertion.
pub(super) fn table(sql: &str) -> &str {
    let name = sql.trim_start_matches("INSERT INTO ");
    name.split('(').next().unwrap_or_default()
}

/// An insertion of a row with a number that is given as the last value.
pub(super) fn with_number(sql: &str, values: usize) -> Option<String> {
    let (columns, rest) = sql.split_once(')')?;
    let rest = rest.trim_start().strip_prefix("VALUES(")?.strip_suffix(')')?;
    Some(format!("{columns}, id) OVERRIDING SYSTEM VALUE VALUES({rest}, ?{})", values + 1))
}

/// The statement for several rows, whose values follow each other.
fn repeated(sql: &str, rows: usize) -> String {
    let Some((head, row, tail)) = parts(sql) else { return sql.to_owned() };
    let mut pieces = row.split('?');
    let first = pieces.next().unwrap_or_default();
    // The text after each value, and which one it is.
    let mut places = Vec::new();
    for (index, piece) in pieces.enumerate() {
        let digits = piece.len() - piece.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number = piece[..digits].parse().unwrap_or(index + 1);
        places.push((number, &piece[digits..]));
    }
    let values = places.iter().map(|(number, _)| *number).max().unwrap_or(0);
    let mut repeated = head.to_owned();
    for index in 0..rows {
        repeated += if index > 0 { ", " } else { "" };
        repeated += first;
        for (number, text) in &places {
            let _ = write!(repeated, "?{}{text}", index * values + number);
        }
    }
    repeated + tail
}

/// The statement before its row of values, the row in parentheses, and the rest.
fn parts(sql: &str) -> Option<(&str, &str, &str)> {
    let begin = sql.find("VALUES(")? + "VALUES".len();
    let mut depth = 0_usize;
    let end = sql[begin..].find(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        depth == 0
    })?;
    let (row, tail) = sql[begin..].split_at(end + 1);
    Some((&sql[..begin], row, tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_together_in_the_order_of_their_tables() {
        let mut many = Many::default();
        for number in 0..112_i64 {
            many.add("INSERT INTO names(x) VALUES(?)".into(), vec![number.into()]);
            many.add("INSERT INTO assets(x) VALUES(?)".into(), vec![number.into()]);
        }
        let statements = many.take();
        let sizes: Vec<usize> = statements.iter().map(|(_, values)| values.len()).collect();
        assert_eq!(sizes, [100, 10, 1, 1, 100, 10, 1, 1]);
        assert!(statements[3].0.contains(" assets(") && statements[4].0.contains(" names("));
        assert_eq!(statements[3].1, [Value::from(111_i64)]);
        assert!(many.take().is_empty());
    }

    #[test]
    fn statements_are_repeated_with_further_values() {
        let sql = "INSERT INTO a(x, y, z) VALUES(?1, coalesce(?1, ?2), ?2) ON CONFLICT DO NOTHING";
        assert_eq!(
            repeated(sql, 2),
            "INSERT INTO a(x, y, z) VALUES(?1, coalesce(?1, ?2), ?2), (?3, coalesce(?3, ?4), ?4) \
             ON CONFLICT DO NOTHING"
        );
        let sql = with_number("INSERT INTO a(x, y) VALUES(?, ?)", 2).unwrap();
        assert_eq!(table(&sql), "a");
        assert_eq!(
            repeated(&sql, 2),
            "INSERT INTO a(x, y, id) OVERRIDING SYSTEM VALUE VALUES(?1, ?2, ?3), (?4, ?5, ?6)"
        );
        assert_eq!(with_number("INSERT INTO counters VALUES('a', 1) RETURNING x", 0), None);
    }
}
